"""Tests that build on each other keep their order where the plugin reorders tests."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.test_guard import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Suite

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
GROUP, OVERLAP = "--ollama-group-by-model", "--ollama-background"
HEAD = """
from tools import *
import os, pathlib

def needs(name):
    return pytest.mark.requires_model(f"{name}:1")

def note(*models):
    for model in models:
        ask(f"{model}:1")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with open(pathlib.Path(__file__).parent / "log", "a") as log:
        log.write(worker + " " + os.environ["PYTEST_CURRENT_TEST"].split(" ")[0] + chr(10))
"""


@pytest.fixture
def ollama() -> Iterator[Emulator]:
    """A server that keeps one model, of three that it has."""
    models = [ScriptedModel(f"{name}:1", present=True, digest=name * 64) for name in "abc"]
    with Emulator(models, max_loaded=1) as emulator:
        yield emulator


def source(*names: str, within: str = "") -> str:
    """Tests of these names; ``draft:b`` needs and uses b, ``open`` none. A class is named before."""
    of_class = bool(within)
    parts = [f"class {within}:"] if of_class else []
    for name in names:
        test, _, model = name.partition(":")
        mark = f'@needs("{model}")\n' if model else ""
        used = f'"{model}"' if model else ""
        argument = "self" if of_class else ""
        one = f"{mark}def test_{test}({argument}):\n    note({used})\n"
        parts.append(indent(one, "    ") if of_class else one)
    return "\n".join(parts) + "\n"


STEPS = source("open", "draft:b", "judge:a", "close", within="TestSteps")
AROUND = source("a1:a") + STEPS + source("b1:b", "a2:a", "plain")


def write(suite: Suite, *sources: str, **files: str) -> None:
    suite.write({"tools.py": TOOLS, "conftest.py": MARKS})
    for number, source in enumerate(sources):
        suite.write({f"test_{number}.py": HEAD + dedent(source)})
    suite.write({f"{name}.py": text for name, text in files.items()})


MARKS = """
    def pytest_configure(config):
        for name in ("dependency", "depends", "order", "incremental", "xdist_group"):
            config.addinivalue_line("markers", f"{name}: of a plugin")
"""


def order(suite: Suite, *args: str) -> list[str]:
    """The names of the tests in the order in which they would run, without ``test_``."""
    run = suite.run("--collect-only", "-q", *args)
    assert 0 == run.ret
    return re.findall(r"::test_(\S+)$", run.out, re.MULTILINE)


COLLECTED = ["a1", "open", "draft", "judge", "close", "b1", "a2", "plain"]
WHOLE = ["a1", "a2", "plain", "b1", "open", "draft", "judge", "close"]
SPLIT = ["a1", "judge", "close", "a2", "plain", "open", "draft", "b1"]
LATER = ["plain", "a1", "open", "draft", "judge", "close", "b1", "a2"]


def test_a_class_is_kept_whole_and_goes_behind_the_group_of_its_first_model(suite: Suite) -> None:
    write(suite, AROUND)
    assert COLLECTED == order(suite)
    assert WHOLE == order(suite, GROUP)
    assert LATER == order(suite, OVERLAP)
    both = order(suite, GROUP, OVERLAP)
    assert ["plain", "a1", "a2", "b1", "open", "draft", "judge", "close"] == both


@pytest.mark.parametrize(
    ("settings", "grouped"),
    [
        (["--ollama-keep-order=test"], SPLIT),
        (["-o", "ollama_keep_order=test"], SPLIT),
        (["--ollama-keep-order=class"], WHOLE),
        (["--ollama-keep-order=auto"], WHOLE),
        (["-o", "ollama_keep_order=module"], COLLECTED),
    ],
    ids=" ".join,
)
def test_the_setting_decides_by_hand(suite: Suite, settings: list[str], grouped: list[str]) -> None:
    write(suite, AROUND)
    assert grouped == order(suite, GROUP, *settings)


def test_one_that_needs_a_single_set_stays_in_its_place(suite: Suite) -> None:
    story = source("open", "ask:a", "close", within="TestOne")
    write(suite, source("b1:b", "a1:a") + story + source("a2:a", "b2:b"))
    assert ["b1", "b2", "a1", "open", "ask", "close", "a2"] == order(suite, GROUP)


def test_a_class_in_a_class_is_part_of_the_outer_one(suite: Suite) -> None:
    inner = indent(source("draft:b", "judge:a", within="TestInner"), "    ")
    outer = source("open:a", within="TestOuter") + inner
    write(suite, outer + source("a1:a", "b1:b"))
    assert ["a1", "open", "draft", "judge", "b1"] == order(suite, GROUP)
    marked = outer.replace(
        "    class TestInner", "    @pytest.mark.ollama_keep_order\n    class TestInner"
    )
    write(suite, marked + source("a1:a", "b1:b"))
    assert ["a1", "open", "draft", "judge", "b1"] == order(suite, GROUP)


ORDERED = ["a1", "b1", "a2"]
MODULE = source("a1:a", "b1:b", "a2:a")


@pytest.mark.parametrize(
    ("mark", "place"),
    [
        ("dependency(name='first')", "module"),
        ("dependency(depends=['test_a1'])", "test"),
        ("depends(on=['test_b1'])", "test"),
        ("order(3)", "test"),
        ("incremental", "module"),
        ("xdist_group('chat')", "test"),
        ("usefixtures('feature_steps')", "module"),
        ("ollama_keep_order", "module"),
        ("ollama_keep_order", "test"),
    ],
)
def test_a_module_with_such_a_mark_is_kept_whole(suite: Suite, mark: str, place: str) -> None:
    mark = f"pytest.mark.{mark}"
    fixture = "@pytest.fixture\ndef feature_steps(): pass\n"
    marked = f"pytestmark = {mark}\n" if place == "module" else f"@{mark}\n"
    write(suite, fixture + marked + MODULE, MODULE)
    # The story comes after the tests of another module that need its first model.
    assert ["a1", "a2", *ORDERED, "b1"] == order(suite, GROUP)
    by_hand = order(suite, GROUP, "--ollama-keep-order=class")
    if mark.endswith("keep_order"):
        assert ["a1", "a2", *ORDERED, "b1"] == by_hand
    else:
        assert ["a1", "a2", "a1", "a2", "b1", "b1"] == by_hand


def test_a_module_of_pytest_steps_is_kept_whole(suite: Suite) -> None:
    write(
        suite,
        "@pytest.fixture\ndef steps_data(): pass\n" + MODULE.replace("a1()", "a1(steps_data)"),
    )
    assert ORDERED == order(suite, GROUP)


def test_other_fixtures_keep_nothing(suite: Suite) -> None:
    fixture = "@pytest.fixture\ndef stepmother(): pass\n"
    write(suite, f"{fixture}pytestmark = pytest.mark.usefixtures('stepmother')\n{MODULE}")
    assert ["a1", "a2", "b1"] == order(suite, GROUP)


def test_the_mark_goes_before_the_setting(suite: Suite) -> None:
    marked = "@pytest.mark.ollama_keep_order\n" + STEPS
    write(suite, source("a1:a") + marked + source("b1:b", "a2:a", "plain"))
    assert WHOLE == order(suite, GROUP, "--ollama-keep-order=test")
    # On a test of a class it means the class.
    inside = STEPS.replace("    @needs", "    @pytest.mark.ollama_keep_order\n    @needs", 1)
    write(suite, source("a1:a") + inside + source("b1:b", "a2:a", "plain"))
    assert WHOLE == order(suite, GROUP, "--ollama-keep-order=test")


def test_the_mark_is_registered(suite: Suite) -> None:
    write(suite, "pytestmark = pytest.mark.ollama_keep_order\n" + MODULE)
    assert ORDERED == order(suite, GROUP, "--strict-markers")
    assert "@pytest.mark.ollama_keep_order: the tests of this module" in suite.run("--markers").out


@pytest.mark.parametrize("by", ["fixture", "mark"])
def test_a_class_that_runs_with_several_models_has_a_story_with_each(suite: Suite, by: str) -> None:
    given = {
        "fixture": "'ollama_model', ['a:1', 'b:1'], indirect=True",
        "mark": "'ollama', [pytest.param(n + ':1', marks=needs(n)) for n in 'ab']",
    }[by]
    name = "ollama_model" if by == "fixture" else "ollama"
    write(
        suite,
        f"""
        @pytest.mark.parametrize({given})
        class TestEach:
            def test_ask(self, {name}): pass
            def test_again(self, {name}): pass
        """,
    )
    grouped = ["ask[a:1]", "again[a:1]", "ask[b:1]", "again[b:1]"]
    assert grouped == order(suite, GROUP)
    assert grouped != order(suite)
    assert order(suite) == order(suite, GROUP, "--ollama-keep-order=module")


def log(suite: Suite) -> list[list[str]]:
    """The worker and the name of each test that has run."""
    lines = (suite.pytester.path / "log").read_text(encoding="utf-8").splitlines()
    return [[line.split()[0], line.rpartition("::test_")[2]] for line in lines]


def loads(suite: Suite) -> list[str]:
    return [one.model for one in suite.ollama.loads]


@WORKERS
def test_a_story_that_needs_two_models_runs_on_one_worker_and_alone(
    suite: Suite, workers: list[str]
) -> None:
    write(suite, AROUND + source("a3:a", "b2:b", "b3:b"))
    run = suite.run(GROUP, *workers)
    assert {"passed": 11} == run.counts
    # What the group of its first model has left in memory, and the other one.
    assert ["a:1", "b:1", "a:1"] == loads(suite)
    assert "Server" not in run.err
    ran = log(suite)
    story = [worker for worker, name in ran if name in ("open", "draft", "judge", "close")]
    assert 4 == len(story)
    assert 1 == len(set(story))
    names = [name for _, name in ran if name != "plain"]
    assert ["open", "draft", "judge", "close"] == names[-4:]


# What pytest-dependency 0.6 does.
DEPENDENCY = """
    import pytest

    PASSED = set()

    def pytest_configure(config):
        config.addinivalue_line("markers", "dependency: as of pytest-dependency")

    def pytest_runtest_makereport(item, call):
        if call.when == "call" and call.excinfo is None:
            mark = item.get_closest_marker("dependency")
            if mark:
                PASSED.add(mark.kwargs.get("name") or item.name)

    def pytest_runtest_setup(item):
        mark = item.get_closest_marker("dependency")
        for one in mark.kwargs.get("depends", ()) if mark else ():
            if one.rpartition("::")[2] not in PASSED:
                pytest.skip(f"{item.name} depends on {one}")
"""


def depends(test: str, *others: str, **more: str) -> str:
    test, _, model = test.partition(":")
    needs = f'@needs("{model}")\n' if model else ""
    keys = "".join(f", {key}={value!r}" for key, value in more.items())
    return (
        f"@pytest.mark.dependency(depends={list(others)}{keys})\n{needs}def test_{test}(): note()\n"
    )


REPORT = depends("draft:a") + depends("judge:b") + depends("report:a", "test_judge")


@WORKERS
@pytest.mark.parametrize("how", [[GROUP], [GROUP, OVERLAP]], ids=["group", "both"])
def test_a_test_that_is_skipped_because_of_the_changed_order_is_said(
    suite: Suite, how: list[str], workers: list[str]
) -> None:
    # With one worker, as else it may be the other worker that has run what is needed.
    workers = workers and ["-n1"]
    write(suite, REPORT)
    suite.write({"conftest.py": DEPENDENCY})
    run = suite.run(*how, *workers, "--ollama-keep-order=class")
    assert {"passed": 2, "skipped": 1} == run.counts
    assert (
        "\n! test_0.py::test_report was skipped (test_report depends on test_judge), as "
        f"{' and '.join(how)} has moved it in front of test_0.py::test_judge. [moved]\n"
        "  → --ollama-keep-order=module, or @pytest.mark.ollama_keep_order on the module, keeps their "
        "order.\n" in run.out
    )
    (suite.pytester.path / "log").unlink()
    run = suite.run(*how, *workers)
    assert {"passed": 3} == run.counts
    assert "was skipped" not in run.out


def test_so_it_is_with_overlap_and_a_name_of_its_own(suite: Suite) -> None:
    write(suite, depends("chat:a", name="talk") + depends("plain", "talk"))
    suite.write({"conftest.py": DEPENDENCY})
    run = suite.run(OVERLAP, "--ollama-keep-order=test")
    assert {"passed": 1, "skipped": 1} == run.counts
    assert (
        f"{OVERLAP} has moved it in front of test_0.py::test_chat. [moved]\n  → --ollama-keep"
        in run.out
    )
    assert {"passed": 2} == suite.run(OVERLAP).counts


def test_what_no_setting_keeps_is_said_too(suite: Suite) -> None:
    other = depends("late:a", "test_0.py::test_judge")
    write(suite, depends("first:a") + depends("judge:b"), other)
    suite.write({"conftest.py": DEPENDENCY})
    run = suite.run(GROUP, "--ollama-keep-order=class")
    assert {"passed": 2, "skipped": 1} == run.counts
    assert f"No setting keeps the order of several files: leave out {GROUP}." in run.out


def test_a_skip_that_the_order_has_not_caused_is_not_said(suite: Suite) -> None:
    # The first is skipped by itself; the other is moved, and not over what it needs.
    write(
        suite,
        depends("draft:a", "nobody") + depends("judge:b") + depends("report:a", "test_draft"),
    )
    suite.write({"conftest.py": DEPENDENCY})
    run = suite.run(GROUP, "--ollama-keep-order=test")
    assert {"passed": 1, "skipped": 2} == run.counts
    assert "was skipped" not in run.out
