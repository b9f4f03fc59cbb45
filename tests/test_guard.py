"""Still warm before each test: what is gone is loaded again, outside of the test's own time."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.conftest import LLAMA, Suite
from tests.test_faults import end, until, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
# What tests of users do to the server; each suite has it beside its tests.
TOOLS = """
    import json, os, urllib.request
    import pytest

    A = pytest.mark.requires_model("a:1")

    def post(path, **body):
        request = urllib.request.Request(os.environ["OLLAMA_HOST"] + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ask(model, **options):
        return post("/api/generate", model=model, prompt="Hi", stream=False, options=options)

    def unload(model):
        post("/api/generate", model=model, keep_alive=0)

    def loaded_models():
        with urllib.request.urlopen(os.environ["OLLAMA_HOST"] + "/api/ps", timeout=60) as answer:
            return {one["name"]: one["context_length"] for one in json.load(answer)["models"]}
"""


@pytest.fixture
def ollama() -> Iterator[Emulator]:
    """A server that keeps three models at most, of five that it has; the first one goes first."""
    models = [ScriptedModel(f"{name}:1", present=True, digest=name * 64) for name in "abcd"]
    with Emulator([LLAMA, *models]) as emulator:
        yield emulator


def write(suite: Suite, tests: str) -> None:
    suite.write({"tools.py": TOOLS, "test_it.py": "from tools import *\n" + _indented(tests)})


def _indented(text: str) -> str:
    # write() takes the indentation of all lines away.
    return re.sub(r"^ {8}", "", text, flags=re.MULTILINE)


def loads(suite: Suite, model: str = "a:1") -> list[object]:
    """The contexts with which *model* was loaded, one by one."""
    return [one.options["num_ctx"] for one in suite.ollama.loads if one.model == model]


# Gone


def test_an_evicted_model_is_back_before_the_test_that_needs_it(suite: Suite) -> None:
    write(
        suite,
        """
        @A
        def test_first(): ask("a:1")

        def test_others():
            for name in "bcd": ask(f"{name}:1")
            assert "a:1" not in loaded_models()

        @A
        def test_second(): assert "a:1" in loaded_models()
        """,
    )
    # No longer than the server's own, so that all have the same.
    run = suite.run("--ollama-keep-alive=60")
    assert {"passed": 3} == run.counts
    assert 2 == len(loads(suite))
    # Whether that test has loaded the others nobody has seen: it is not marked.
    assert re.search(
        r"^! a:1 was gone during test_it\.py::test_others when b:1, c:1 and d:1 were loaded "
        r"\(evicted, or unloaded by somebody\), and loaded again before "
        r"test_it\.py::test_second \([\d.]+ m?s\)\. \[displaced\]$",
        run.out,
        re.MULTILINE,
    ), run.out
    assert (
        "b:1, c:1 and d:1 were used during test_it.py::test_others, and are not listed. [unlisted]\n  → If these "
        "tests use them, list them or mark the tests, so that they are loaded before.\n"
    ) in run.out


def test_somebody_elses_model_that_comes_while_a_test_unloads_ours_has_not_evicted_it(
    suite: Suite,
) -> None:
    # The second request stands for somebody who uses the server at that time.
    write(
        suite,
        """
        @A
        def test_that_unloads():
            unload("a:1")
            ask("d:1")

        @A
        def test_after_it(): assert "a:1" in loaded_models()
        """,
    )
    # So that they are not seen together.
    suite.ollama.scheduler._max_loaded = 1
    run = suite.run("-p", "no:randomly")
    assert {"passed": 2} == run.counts
    assert (
        "a:1 was gone during test_it.py::test_that_unloads when d:1 was loaded (evicted, or "
        "unloaded by somebody), and loaded again before test_it.py::test_after_it"
    ) in run.out
    assert "evicted during" not in run.out
    assert "OLLAMA_MAX_LOADED_MODELS" not in run.out


@WORKERS
def test_a_model_that_tests_only_unload_is_loaded_again_once(
    suite: Suite, workers: list[str]
) -> None:
    write(
        suite,
        """
        @A
        @pytest.mark.parametrize("n", range(16))
        def test_it(n): unload("a:1")
        """,
    )
    run = suite.run(*workers)
    assert {"passed": 16} == run.counts
    assert 2 == len(loads(suite))
    assert "a:1 was gone again before a test used it; the plugin stopped reloading it." in run.out


def test_a_model_that_is_gone_too_often_is_left_alone(suite: Suite) -> None:
    write(
        suite,
        """
        @A
        @pytest.mark.parametrize("n", range(12))
        def test_it(n): ask("a:1") if n % 2 else unload("a:1")
        """,
    )
    run = suite.run("-p", "no:randomly")
    assert {"passed": 12} == run.counts
    # Six as without the plugin, and its own before the first test.
    assert 7 == len(loads(suite))
    assert "a:1 was gone 3 times within 5 minutes; the plugin stopped reloading it." in run.out


def test_a_lease_that_ran_out_is_told_as_such(suite: Suite) -> None:
    write(
        suite,
        """
        import time

        @A
        def test_first(): pass

        def test_slow(): time.sleep(3.6)

        @A
        def test_second(): assert "a:1" in loaded_models()
        """,
    )
    suite.ollama.scheduler._keep_alive_s = 3.0
    run = suite.run("--ollama-keep-alive=3")
    assert {"passed": 3} == run.counts
    assert (
        "a:1 was no longer loaded, as its keep-alive had ended, and loaded again before" in run.out
    )
    assert "Raise --ollama-keep-alive." in run.out


def test_a_runner_that_is_shared_under_another_name_is_not_cold(suite: Suite) -> None:
    suite.ollama.add(ScriptedModel("twin:1", present=True, weights="w", digest="1" * 64))
    suite.ollama.add(ScriptedModel("a:1", present=True, weights="w", digest="2" * 64))
    write(
        suite,
        """
        @pytest.mark.requires_model("twin:1")
        @pytest.mark.parametrize("n", range(10))
        def test_twin(n): pass

        @A
        @pytest.mark.parametrize("n", range(10))
        def test_it(n): assert ["twin:1"] == list(loaded_models()) or ["a:1"] == list(loaded_models())
        """,
    )
    run = suite.run()
    assert {"passed": 20} == run.counts
    assert 1 == len(suite.ollama.loads)
    assert "was cold" not in run.out
    # Once it is known who is listed in its place, it is not asked for again.
    assert len(suite.ollama.calls("generate")) < 10


# Other options


def test_another_context_is_adopted_and_never_fought(suite: Suite) -> None:
    write(
        suite,
        """
        @A
        @pytest.mark.parametrize("n", range(4))
        def test_it(n): ask("a:1", num_ctx=8192)
        """,
    )
    run = suite.run()
    assert {"passed": 4} == run.counts
    assert [4096, 8192] == loads(suite)
    assert re.search(
        r"a:1 was loaded with num_ctx 4096 \(server default\), and during "
        r"test_it\.py::test_it\[0\] with 8192: 1 reload\. \[other-context-length\]\n  → The next run here loads it "
        r"so\. Elsewhere, list a:1,num_ctx=8192\.",
        run.out,
    ), run.out


@WORKERS
def test_what_is_gone_comes_back_with_the_context_of_the_tests(
    suite: Suite, workers: list[str]
) -> None:
    write(
        suite,
        """
        @A
        def test_other_context(): ask("a:1", num_ctx=8192)

        @A
        def test_unloads(): unload("a:1")

        @A
        def test_same_context(): assert 8192 == loaded_models()["a:1"]
        """,
    )
    suite.ollama.add(replace(LLAMA, present=True))
    run = suite.run(*[one.replace("-n2", "-n1") for one in workers])
    assert {"passed": 3} == run.counts
    assert [4096, 8192, 8192] == loads(suite)


def test_contexts_in_turn_are_said_with_their_cure(suite: Suite) -> None:
    write(
        suite,
        """
        @A
        @pytest.mark.parametrize("num_ctx", [8192, 4096] * 3)
        def test_it(num_ctx): ask("a:1", num_ctx=num_ctx)
        """,
    )
    run = suite.run()
    assert [4096, *[8192, 4096] * 3] == loads(suite)
    assert (
        "a:1 was loaded with num_ctx 4096 and 8192 in turn: 6 reloads. [contexts-in-turn]\n  → If these"
        in run.out
    )


@pytest.mark.parametrize("option", ["num_thread=1", "num_batch=256"])
def test_options_that_ps_does_not_show_cost_no_load_but_the_tests_own(
    suite: Suite, option: str
) -> None:
    tests = f"""
        @A
        @pytest.mark.parametrize("n", range(6))
        def test_it(n): ask("a:1", **({{}} if n % 2 else dict({option})))
        """
    write(suite, tests)
    assert {"passed": 6} == suite.run().counts
    ours = len(loads(suite))
    suite.ollama.forget()
    suite.ollama.unload("a:1")
    assert {"passed": 6} == suite.run("--ollama-off").counts
    assert ours <= len(loads(suite)) + 1


def test_two_variants_of_a_model_are_no_change_of_habit(suite: Suite) -> None:
    write(
        suite,
        """
        @pytest.mark.requires_model("a:1,num_ctx=2048")
        def test_small(): ask("a:1", num_ctx=2048)

        @pytest.mark.requires_model("a:1,num_ctx=8192")
        def test_large(): ask("a:1", num_ctx=8192)
        """,
    )
    run = suite.run()
    assert {"passed": 2} == run.counts
    # The first one, and then the test's own.
    assert [2048, 8192] == loads(suite)
    assert (
        "a:1,num_ctx=8192 is not loaded yet: it has the weights of a:1,num_ctx=2048, and the "
        "server keeps one at a time [not-loaded-yet]"
    ) in run.ours
    assert (
        "a:1 is wanted with num_ctx 2048 and 8192: 1 reload. [variants]\n  → --ollama-group-by-model"
        in run.out
    )


VARIANTS = """
        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.parametrize("num_ctx", [
            pytest.param(one, marks=pytest.mark.requires_model(f"a:1,num_ctx={one}"))
            for one in (2048, 8192)
        ])
        def test_it(n, num_ctx, ollama_options):
            assert {"num_ctx": num_ctx} == ollama_options
            ask("a:1", **ollama_options)
"""


def test_what_switches_between_variants_cost_is_told(suite: Suite) -> None:
    tests = VARIANTS.replace("range(3)", "[0]").replace("def test_it", "def test_first")
    write(suite, tests + tests.replace("test_first", "test_second"))
    run = suite.run()
    assert {"passed": 4} == run.counts
    # The first variant is warm; each test that wants the other one makes the server load it.
    reloads = len(loads(suite)) - 1
    assert f"a:1 is wanted with num_ctx 2048 and 8192: {reloads} reload" in run.out
    assert "--ollama-group-by-model makes it one for each." in run.out


def test_grouped_each_variant_is_loaded_once(suite: Suite) -> None:
    write(suite, VARIANTS)
    run = suite.run("--ollama-group-by-model", "-p", "no:randomly")
    assert {"passed": 6} == run.counts
    assert [2048, 8192] == loads(suite)
    assert "--ollama-group-by-model makes" not in run.out


# Equal weights


# A step is over when it was seen what it used: what two tests do between two looks nobody sees.
# Registered last, its wrapper is the outermost, and goes on when the plugin has looked.
STEPS = """
    import pathlib
    import pytest

    class Steps:
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item):
            result = yield
            pathlib.Path("step-" + item.nodeid.rpartition("_")[2]).touch()
            return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(session):
        session.config.pluginmanager.register(Steps())
"""


def write_in_turn(suite: Suite, *steps: tuple[str, str]) -> None:
    """Write a test for each step: what it is marked with, and what it asks, after the one before.

    An empty mark is none.
    """
    tests = ["import pathlib, time"]
    for index, (marked, asked) in enumerate(steps):
        tests += [
            f'@pytest.mark.requires_model("{marked}")' if marked else "",
            f"def test_{index}():",
            "    end = time.monotonic() + 60",
            f"    while {index} and not pathlib.Path('step-{index - 1}').exists():",
            "        assert time.monotonic() < end",
            "        time.sleep(0.01)",
            f'    ask("{asked}")',
        ]
    test_it = "\n".join(["from tools import *", *tests])
    suite.write({"tools.py": TOOLS, "test_it.py": test_it, "conftest.py": STEPS})


def numbers_of_loads(suite: Suite, *args: str) -> tuple[int, int]:
    """Run the suite cold, without the plugin and with it; the output is that of the second run."""
    found = []
    for more in (("--ollama-off",), args):
        for path in suite.pytester.path.glob("step-*"):
            path.unlink()
        for runner in suite.ollama.scheduler.runners_in_memory():
            suite.ollama.unload(runner.model.name)
        suite.ollama.forget()
        run = suite.run("-p", "no:randomly", *more, *(["-n2"] if "-n2" in args else []))
        assert 0 == run.ret
        found.append(len(suite.ollama.loads))
        (suite.pytester.path / "last.txt").write_text(run.out, encoding="utf-8")
    return found[0], found[1]


def last_output(suite: Suite) -> str:
    return (suite.pytester.path / "last.txt").read_text(encoding="utf-8")


@pytest.fixture
def of_equal_weights(suite: Suite) -> Suite:
    """The suite, and ``a:1`` with two variants: ``a:short`` and ``a:long``."""
    a = ScriptedModel("a:1", present=True, digest="1" * 64, weights="f" * 64)
    suite.ollama.add(a)
    suite.ollama.add(replace(a, name="a:short", digest="2" * 64, num_ctx=1024))
    suite.ollama.add(replace(a, name="a:long", digest="3" * 64, num_ctx=16384))
    return suite


GROUP = "use --ollama-group-by-model"
SAME = "send the same num_ctx with each request to them"


@WORKERS
@pytest.mark.parametrize(
    ("order", "names", "reloads"),
    [
        (["a:1", "a:short"] * 2, "a:1 and a:short", 2),
        (["a:1", "a:short", "a:long"] * 2, "a:1, a:long and a:short", 3),
        (["a:short", "a:long", "a:short"], "a:long and a:short", 1),
    ],
)
def test_models_that_displace_each_other_cost_no_load_and_are_said_once(
    of_equal_weights: Suite, order: list[str], names: str, reloads: int, workers: list[str]
) -> None:
    write_in_turn(of_equal_weights, *[(one, one) for one in order])
    without, ours = numbers_of_loads(of_equal_weights, *workers)
    assert len(order) == without
    assert ours <= without
    out = last_output(of_equal_weights)
    assert (
        f"{names} have the same weights, and the server keeps one of them in memory at a time: "
        f"{reloads} reload"
    ) in out
    assert f"  → To avoid that, {GROUP}, or {SAME}." in out
    assert "OLLAMA_MAX_LOADED_MODELS" not in out
    assert 1 == out.count("have the same weights")
    assert "evicted" not in out


def test_both_cures_of_equal_weights_help(of_equal_weights: Suite) -> None:
    suite, order = of_equal_weights, ["a:1", "a:short", "a:long"] * 2
    write_in_turn(suite, *[(one, one) for one in order])
    # Each test waits for its turn, which is another one here.
    path = suite.pytester.path / "test_it.py"
    path.write_text(re.sub(r"while \d+ and", "while False and", path.read_text()))
    assert (6, 3) == numbers_of_loads(suite, "--ollama-group-by-model")
    assert "the same weights" not in last_output(suite)
    path.write_text(re.sub(r"ask\((.*)\)", r"ask(\1, num_ctx=2048)", path.read_text()))
    without, ours = numbers_of_loads(suite)
    assert 1 == without
    assert ours <= without + 1
    assert "the same weights" not in last_output(suite)


@WORKERS
def test_a_variant_that_only_tests_use_is_not_fought(
    of_equal_weights: Suite, workers: list[str]
) -> None:
    # Also where several tests after each other are marked with what they do not use.
    asked = ["a:1", "a:short", "a:short", "a:1", "a:short", "a:short", "a:1"]
    write_in_turn(of_equal_weights, *[("a:1", one) for one in asked])
    without, ours = numbers_of_loads(of_equal_weights, *workers)
    assert 5 == without
    assert ours <= without
    out = last_output(of_equal_weights)
    assert "a:1 and a:short have the same weights" in out
    assert f"mark the tests that use a:short and {GROUP}, or {SAME}." in out
    assert "is not listed" not in out
    assert "OLLAMA_MAX_LOADED_MODELS" not in out


def test_equal_weights_in_a_suite_without_marks(of_equal_weights: Suite) -> None:
    suite = of_equal_weights
    write_in_turn(suite, *[("", one) for one in ["a:1", "a:short", "a:1"]])
    # Longer than from one look to the next.
    path = suite.pytester.path / "test_it.py"
    path.write_text(path.read_text().replace("    ask(", "    time.sleep(0.3); ask("))
    without, ours = numbers_of_loads(suite, "--ollama-preload=a:1")
    assert ours <= without
    out = last_output(suite)
    assert (
        "keeps one of them in memory at a time: 1 reload. [variant]\n  → To avoid that, send the same"
        in out
    )
    assert "OLLAMA_MAX_LOADED_MODELS" not in out


def test_a_variant_with_the_same_runner_options_is_loaded_and_shares_in_peace(suite: Suite) -> None:
    a = ScriptedModel("a:1", present=True, digest="1" * 64, weights="f" * 64)
    suite.ollama.add(a)
    # That is what the server takes by itself.
    suite.ollama.add(replace(a, name="a:same", digest="2" * 64, num_ctx=4096))
    write_in_turn(suite, *[(one, one) for one in ["a:1", "a:same"] * 2])
    run = suite.run("-p", "no:randomly")
    assert {"passed": 4} == run.counts
    assert 1 == len(suite.ollama.loads)
    assert "not loaded" not in run.out
    assert "weights" not in run.out


def test_of_four_models_two_with_equal_weights_the_server_needs_three_places(
    of_equal_weights: Suite,
) -> None:
    suite = of_equal_weights
    order = ["a:1", "b:1", "c:1", "a:short", "b:1", "c:1", "a:1"]
    write_in_turn(suite, *[(one, one) for one in order])
    without, ours = numbers_of_loads(suite)
    assert (5, 5) == (without, ours)
    assert "had to make room" not in last_output(suite)
    assert "OLLAMA_MAX_LOADED_MODELS" not in last_output(suite)


def test_a_run_in_which_much_happens_reads_well(suite: Suite) -> None:
    suite.ollama.add(ScriptedModel("a:1", present=True, digest="a" * 64, load_s=0.1))
    write(
        suite,
        """
        import pathlib, time

        @A
        def test_first(): ask("a:1")

        def test_others():
            for name in "bcd": ask(f"{name}:1")

        @A
        def test_after_an_eviction():
            assert "a:1" in loaded_models()
            ask("a:1")

        @A
        def test_of_a_restart():
            print("GO", flush=True)
            while not pathlib.Path("went").exists(): time.sleep(0.01)

        @A
        def test_after_a_restart(): assert "a:1" in loaded_models()

        @A
        def test_with_another_context(): ask("a:1", num_ctx=8192)

        @A
        def test_last(): assert 8192 == loaded_models()["a:1"]
        """,
    )
    process = suite.start("-s", "-v", "--ollama-keep-alive=60")
    wait_for(process, "GO")
    suite.ollama.stop()
    suite.ollama.start()
    (suite.pytester.path / "went").touch()
    code, out = end(process)
    assert 0 == code, out
    summary = out[out.index("- ollama models -") :].splitlines()[1:-1]
    assert ANY_TIME.sub("TIME", "\n".join(summary)).rstrip() == GOLDEN


ANY_TIME = re.compile(r"\b[\d.]+ m?s\b")
GOLDEN = """\
✓ a:1   loaded in TIME   6 tests
! a:1 was gone during test_it.py::test_others when b:1, c:1 and d:1 were loaded (evicted, or \
unloaded by somebody), and loaded again before test_it.py::test_after_an_eviction (TIME). [displaced]
! a:1 was gone (unloaded, or the server was restarted), and loaded again before \
test_it.py::test_after_a_restart (TIME). [gone]
! a:1 was loaded with num_ctx 4096 and 8192 in turn: 1 reload, about TIME. [contexts-in-turn]
  → If these come from your tests, send the same num_ctx in each: pass options=ollama_options.
! b:1, c:1 and d:1 were used during test_it.py::test_others, and are not listed. [unlisted]
  → If these tests use them, list them or mark the tests, so that they are loaded before."""


def test_doctests_that_need_no_model_are_left_alone_between_those_that_do(suite: Suite) -> None:
    write(
        suite,
        """
        def twice(x):
            \"\"\"
            >>> twice(2)
            4
            \"\"\"
            return 2 * x

        @A
        def test_it(): assert "a:1" in loaded_models()
        """,
    )
    assert {"passed": 2} == suite.run("--doctest-modules", "test_it.py").counts


def test_doctests_of_a_file_that_is_marked_are_guarded(suite: Suite) -> None:
    suite.write(
        {
            "tools.py": TOOLS,
            "conftest.py": """
            import pytest

            def pytest_collection_modifyitems(items):
                for item in items:
                    if "doc" in item.name:
                        item.add_marker(pytest.mark.requires_model("a:1"))
            """,
            "doc1.txt": '>>> from tools import *\n>>> "a:1" in loaded_models()\nTrue\n>>> unload("a:1")\n',
            "doc2.txt": '>>> from tools import *\n>>> "a:1" in loaded_models()\nTrue\n',
        }
    )
    run = suite.run("--doctest-glob=doc*.txt")
    assert {"passed": 2} == run.counts
    assert 2 == len(loads(suite))


def test_what_another_test_asks_for_is_not_what_the_next_run_learns(suite: Suite) -> None:
    write(
        suite,
        """
        @pytest.mark.parametrize("n", range(3))
        @A
        def test_plain(n, ollama_options): ask("a:1", **ollama_options)

        @pytest.mark.requires_model("a:1,num_ctx=512")
        @pytest.mark.parametrize("n", range(4))
        def test_small(n, ollama_options): ask("a:1", **ollama_options)
        """,
    )
    for args in ([], ["--ollama-background"], ["--ollama-group-by-model"], []):
        run = suite.run(*args)
        assert {"passed": 7} == run.counts
        assert "num_ctx 512, learned" not in run.out, run.out
        assert "was loaded with num_ctx" not in run.out, run.out


@pytest.mark.parametrize("workers", ["-n2", "-n3"])
def test_workers_that_use_another_context_are_not_fought(suite: Suite, workers: str) -> None:
    suite.ollama.add(ScriptedModel("a:1", present=True, digest="a" * 64, load_s=0.4))
    write(
        suite,
        """
        import time

        @A
        @pytest.mark.parametrize("n", range(12))
        def test_it(n):
            time.sleep(n % 4 * 0.05)
            ask("a:1", num_ctx=8192)
        """,
    )
    run = suite.run(workers)
    assert {"passed": 12} == run.counts
    assert [4096, 8192] == loads(suite)
    assert "loaded again" not in run.out
    assert re.search(
        r"a:1 was loaded with num_ctx 4096 \(server default\), and (during \S+|by tests) with 8192: ",
        run.out,
    )
    assert ": 1 reload, about" in run.out


@pytest.mark.parametrize("first", ["gw0", "gw1"])
def test_a_model_that_is_missing_while_another_test_uses_it_is_left_to_that(
    suite: Suite, first: str
) -> None:
    tests = """
        import pathlib, time

        ROLE = "long" if os.environ["PYTEST_XDIST_WORKER"] == "FIRST" else "other"

        @A
        @pytest.mark.parametrize("n", range(2))
        def test_it(n):
            gone, looked = pathlib.Path("gone"), pathlib.Path("looked")
            if ROLE == "long" and not gone.exists():
                unload("a:1")
                gone.touch()
                # Longer than a look before a test waits.
                time.sleep(3)
                looked.touch()
            while not looked.exists(): time.sleep(0.05)
            assert "a:1" not in loaded_models()
        """.replace("FIRST", first)
    write(suite, tests)
    run = suite.run("-n2", "-p", "timeout", "--timeout=30")
    assert 1 == len(loads(suite)), run.out


def test_workers_that_use_more_models_than_fit_load_no_more_often_than_without(
    suite: Suite,
) -> None:
    write(
        suite,
        """
        @pytest.mark.parametrize("name", [
            pytest.param(f"{one}:1", marks=pytest.mark.requires_model(f"{one}:1")) for one in "abcd"
        ])
        @pytest.mark.parametrize("n", range(6))
        def test_it(n, name): pass
        """,
    )
    run = suite.run("-n2")
    assert {"passed": 24} == run.counts
    # The tests load nothing, so that without there is none.
    assert 4 == len(suite.ollama.loads)
    assert "was evicted" not in run.out


# The test's own time


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_bringing_back_is_no_part_of_a_tests_time(suite: Suite, method: str) -> None:
    suite.ollama.add(ScriptedModel("a:1", present=True, load_s=1.5))
    write(
        suite,
        """
        @A
        def test_first(): unload("a:1")

        @A
        def test_second(): assert "a:1" in loaded_models()
        """,
    )
    timeout = ["-p", "timeout", "--timeout=1", f"--timeout-method={method}"]
    run = suite.run(*timeout, "--durations=0", "-vv")
    assert {"passed": 2} == run.counts
    assert not re.search(r"^[1-9]\.\d+s (setup|call|teardown)", run.out, re.MULTILINE)


def test_a_second_attempt_is_guarded_too(suite: Suite) -> None:
    write(
        suite,
        """
        tries = []

        @A
        def test_flaky():
            tries.append("a:1" in loaded_models())
            if len(tries) == 1:
                unload("a:1")
                raise AssertionError("once")
            assert [True, True] == tries
        """,
    )
    run = suite.run("-p", "pytest_rerunfailures", "--reruns=1")
    assert "1 passed, 1 rerun" in run.out
    assert 2 == len(loads(suite))


@pytest.mark.parametrize(
    "plugin",
    [
        ["-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function"],
        ["-p", "randomly"],
        ["-p", "pytest_repeat", "--count=2"],
    ],
    ids=["asyncio", "randomly", "repeat"],
)
def test_beside_other_plugins(suite: Suite, plugin: list[str]) -> None:
    write(
        suite,
        """
        import unittest

        @A
        class TestOld(unittest.TestCase):
            def test_it(self):
                self.assertIn("a:1", loaded_models())
                unload("a:1")

        @A
        @pytest.mark.parametrize("n", range(2))
        def test_it(n): assert "a:1" in loaded_models()
        """,
    )
    run = suite.run(*plugin)
    assert {"passed"} == set(run.counts)
    assert run.counts["passed"] >= 3


# What is seen, and what is not


def without(*fields: str) -> Callable[[list[Any]], list[Any]]:
    """What a server says that does not know *fields*."""
    return lambda models: [{key: one[key] for key in one if key not in fields} for one in models]


def with_(**fields: object) -> Callable[[list[Any]], list[Any]]:
    """What a server says that has this in *fields*."""
    return lambda models: [{**one, **fields} for one in models]


def late(models: list[Any]) -> list[Any]:
    time.sleep(0.1)
    return models


SAYS = {
    "nothing": lambda models: [],
    "404": lambda models: None,
    "no expires_at": without("expires_at"),
    "no context_length": without("context_length"),
    "neither": without("expires_at", "context_length", "digest"),
    "a clock of last year": with_(expires_at="2025-07-01T09:59:00Z"),
    "rubbish": with_(expires_at=["x"], context_length="many", digest=None, size=-1),
    "the same for everything": with_(name="x:1", digest="x"),
    "late": late,
}


@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize("listed", [[], ["--ollama-preload=a:1"]], ids=["marked", "listed"])
def test_whatever_the_server_says_of_its_memory_no_test_and_no_load_is_lost(
    suite: Suite, says: str, listed: list[str]
) -> None:
    body = '@pytest.mark.parametrize("n", range(4))\ndef test_it(n): ask("a:1", num_ctx=8192)\n'
    write(suite, body if listed else f"@A\n{body}")
    suite.ollama.state.edit_ps = SAYS[says]
    run = suite.run(*listed, "-W", "error")
    assert {"passed": 4} == run.counts, run.out
    assert "Traceback" not in run.out + run.err
    assert [4096, 8192] == loads(suite)
    for claim in ("was evicted", "was unloaded", "was gone", "was used during"):
        assert claim not in run.out
    # The context alone tells it, and nothing else does.
    tells = says in ("no expires_at", "a clock of last year", "late")
    assert tells == ("was loaded with num_ctx 4096" in run.out)


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["single", "n1"])
def test_a_model_that_tests_use_and_nobody_lists_is_named_with_its_tests(
    suite: Suite, workers: list[str]
) -> None:
    write(
        suite,
        """
        @A
        def test_a(): ask("a:1")

        @A
        @pytest.mark.parametrize("n", range(3))
        def test_other(n):
            ask("a:1")
            ask("c:1")
        """,
    )
    run = suite.run(*workers)
    assert {"passed": 4} == run.counts
    assert (
        "c:1 was used during test_it.py::test_other[0] and 2 more, and is not listed. [unlisted]\n  → If these "
        "tests use it, list it or mark the tests, so that it is loaded before."
    ) in run.out
    assert "a:1 was" not in run.out


# Servers that go away, and what cannot be asked


WAITS = """
        import pathlib, time

        @A
        @pytest.mark.parametrize("n", range(4))
        def test_it(n):
            if n == 1:
                print("GO", flush=True)
                while not pathlib.Path("went").exists(): time.sleep(0.01)
            elif n > 1:
                assert "a:1" in loaded_models()
        """


def test_a_server_that_is_back_costs_no_test(suite: Suite) -> None:
    write(suite, WAITS)
    process = suite.start("-s")
    wait_for(process, "GO")
    suite.ollama.stop()
    suite.ollama.start()
    (suite.pytester.path / "went").touch()
    code, out = end(process)
    assert (0, True) == (code, "4 passed" in out)
    assert 2 == len(loads(suite))


@pytest.mark.usefixtures("ollama_in_path")
def test_a_server_that_stays_away_is_waited_for_once(suite: Suite) -> None:
    write(suite, WAITS)
    process = suite.start("-s", "--ollama-wait=1")
    wait_for(process, "GO")
    suite.ollama.stop()
    (suite.pytester.path / "went").touch()
    code, out = end(process)
    # They run, as they would without the plugin, and fail by themselves.
    assert (1, True) == (code, "2 failed, 2 passed" in out), out
    assert (
        f"lost before test_it.py::test_it[2] and 1 more: no Ollama at {suite.ollama.url} (from OLLAMA_HOST): connection refused for 1 s. [server-unreachable]\n  → Start it"
        in out
    )
    # The next one has met a refusal too, which is no other event.
    assert 1 == out.count("lost before ")


@WORKERS
def test_a_model_that_does_not_load_again_changes_no_outcome(
    suite: Suite, workers: list[str]
) -> None:
    write(
        suite,
        """
        @A
        def test_deletes():
            unload("a:1")
            url = os.environ["OLLAMA_HOST"] + "/api/delete"
            request = urllib.request.Request(url, b'{"model": "a:1"}', method="DELETE")
            urllib.request.urlopen(request).close()

        @A
        def test_plain(): pass

        @A
        @pytest.mark.xfail
        def test_expected_to_fail(): pass
        """,
    )
    run = suite.run(*[one.replace("-n2", "-n1") for one in workers])
    assert {"passed": 2, "xpassed": 1} == run.counts
    assert 'a:1 does not load: "model' in run.out


def test_a_mock_for_the_whole_session_makes_it_warn_once_and_run(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest, respx

                @pytest.fixture(scope="session")
                def router():
                    with respx.mock as router:
                        yield router

                @pytest.mark.requires_model("a:1")
                @pytest.mark.parametrize("n", range(4))
                def test_it(router, n): pass
            """
        }
    )
    run = suite.run()
    assert {"passed": 4} == {key: n for key, n in run.counts.items() if key == "passed"}
    (seen,) = re.findall(
        r"OllamaWarmupWarning: cannot see whether models are still warm.*", run.out
    )
    assert re.search(r"[^]] \[cannot-look\]$", seen)
    assert {"passed": 4} == suite.run("-W", "error").counts


def test_a_mock_of_a_test_sees_nothing_of_it(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest, respx

                @pytest.mark.requires_model("a:1")
                @pytest.mark.parametrize("n", range(3))
                def test_it(ollama_models, n):
                    with respx.mock as router:
                        assert "a:1" == ollama_models["a:1"].name
                    assert not router.calls
            """
        }
    )
    run = suite.run("-W", "error")
    assert {"passed": 3} == run.counts


def test_nothing_is_asked_for_tests_that_need_no_model(suite: Suite) -> None:
    write(
        suite,
        """
        @pytest.mark.parametrize("n", range(20))
        def test_plain(n): pass

        @A
        def test_model(): pass
        """,
    )
    suite.run()
    # Before the load and after it, before the first test, before the marked one and after it.
    assert 5 == len(suite.ollama.calls("ps"))


@WORKERS
def test_without_warming_nothing_is_guarded(suite: Suite, workers: list[str]) -> None:
    write(suite, "@A\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass\n")
    assert {"passed": 4} == suite.run("--ollama-warm=off", *workers).counts
    assert [] == suite.ollama.calls("ps") + suite.ollama.calls("generate")


def test_the_first_wait_names_what_it_waits_for(suite: Suite) -> None:
    write(suite, WAITS)
    process = suite.start("-s", "--ollama-wait=60")
    wait_for(process, "GO")
    suite.ollama.stop()
    (suite.pytester.path / "went").touch()
    wait_for(process, f"waiting for {suite.ollama.url} (connection refused), up to 60 s")
    suite.ollama.start()
    code, out = end(process)
    assert (0, True) == (code, "4 passed" in out)
    until(lambda: 2 == len(loads(suite)))


# Suites that do not say which tests need a model


UNMARKED = """
        import time

        @pytest.mark.parametrize("n", range(6))
        def test_it(n):
            time.sleep(0.3)
            WHAT
        """


@WORKERS
def test_an_unmarked_suite_is_only_observed(suite: Suite, workers: list[str]) -> None:
    write(suite, UNMARKED.replace("WHAT", 'unload("a:1")'))
    run = suite.run("--ollama-preload=a:1", *workers)
    assert {"passed": 6} == run.counts
    assert 1 == len(loads(suite))
    # Nobody has loaded it again: that it was gone has cost nothing.
    assert "a:1 was " not in run.out


@WORKERS
def test_an_unmarked_suite_with_more_models_than_fit_is_only_watched(
    suite: Suite, workers: list[str]
) -> None:
    write(suite, UNMARKED.replace("WHAT", 'ask("abcd"[n % 4] + ":1")'))
    listed = "--ollama-preload=a:1 b:1 c:1 d:1"
    run = suite.run(listed, *workers)
    assert {"passed": 6} == run.counts
    assert "a:1 had to make room for d:1; what is left is loaded when a test uses it." in run.out
    assert "--ollama-group-by-model" not in run.out
    ours = len(suite.ollama.loads)
    suite.ollama.forget()
    for name in "abcd":
        suite.ollama.unload(f"{name}:1")
    suite.run(listed, "--ollama-off", *workers)
    assert ours <= len(suite.ollama.loads) + 4


def test_an_unmarked_suite_does_not_mind_a_server_that_is_gone(suite: Suite) -> None:
    write(suite, UNMARKED.replace("WHAT", ""))
    process = suite.start("-v", "--ollama-preload=a:1", "--ollama-wait=60")
    wait_for(process, "PASSED")
    suite.ollama.stop()
    code, out = end(process)
    assert (0, True) == (code, "6 passed" in out)
    assert "waiting for" not in out


@WORKERS
def test_an_unmarked_suite_learns_which_context_to_list(suite: Suite, workers: list[str]) -> None:
    write(suite, UNMARKED.replace("WHAT", 'ask("a:1", num_ctx=8192)'))
    run = suite.run("--ollama-preload=a:1", *workers)
    # Of two workers nobody knows whose test it was.
    who = "by tests" if workers else "during test_it.py::test_it[0]"
    assert f"and {who} with 8192: 1 reload" in run.out
    assert [4096, 8192] == loads(suite)
