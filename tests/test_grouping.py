"""The tests of one set of models after those of another."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.conftest import Result
from tests.test_faults import end, wait_for
from tests.test_guard import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Suite

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
GROUP = "--ollama-group-by-model"
MODELS = [
    ScriptedModel(f"{name}:1", present=True, digest=name * 64, load_s=0.05) for name in "abcd"
]
# Each test asks for its model, and tells where it ran, beside which others.
IN_TURN = """
from tools import *

def needs(name):
    return pytest.param(f"{name}:1", marks=pytest.mark.requires_model(f"{name}:1"))

@pytest.mark.parametrize("name", [needs(name) for name in "abcd"])
@pytest.mark.parametrize("n", range(6))
def test_it(n, name):
    assert name in loaded_models()
    ask(name)
"""


@pytest.fixture
def ollama() -> Iterator[Emulator]:
    """A server that keeps three models at most, of four that it has."""
    with Emulator(MODELS) as emulator:
        yield emulator


@pytest.fixture
def suite(suite: Suite) -> Suite:
    """A suite of 24 tests that need four models in turn."""
    suite.write({"tools.py": TOOLS, "test_it.py": IN_TURN})
    return suite


def loads(suite: Suite) -> list[str]:
    return [one.model for one in suite.ollama.loads]


def test_in_turn_means_in_turn(suite: Suite) -> None:
    run = suite.run("--collect-only", "-q")
    assert ["0-a:1", "0-b:1", "0-c:1", "0-d:1", "1-a:1"] == re.findall(r"\[(.*)\]", run.out)[:5]


@WORKERS
@pytest.mark.parametrize("listed", [[], ["--ollama-preload=d:1 c:1 b:1 a:1"]], ids=["", "listed"])
def test_each_model_is_loaded_once(suite: Suite, workers: list[str], listed: list[str]) -> None:
    run = suite.run(GROUP, "-v", *listed, *workers)
    assert {"passed": 24} == run.counts
    assert ["a:1", "b:1", "c:1", "d:1"] == loads(suite)
    assert 4 == len([line for line in run.table if "loaded in" in line])
    assert "cold" not in run.out


@pytest.mark.parametrize("hosts", [1, 2])
def test_workers_whose_hashes_differ_agree_about_the_order(suite: Suite, hosts: int) -> None:
    """Started, not forked: each Python has a seed of its own."""
    address = '"http://" + os.environ["OLLAMA_HOST"].removeprefix("http://")'
    suite.write({"tools.py": TOOLS.replace('os.environ["OLLAMA_HOST"]', address)})
    with Emulator(MODELS) as other:
        addresses = ",".join([suite.ollama.url, other.url][:hosts])
        command = suite.command(GROUP, "-n2", f"--ollama-host={addresses}")
        done = subprocess.run(
            command, cwd=suite.pytester.path, capture_output=True, text=True, check=False
        )
        assert {"passed": 24} == Result(done.returncode, done.stdout, done.stderr).counts, done
        each = [sorted(load.model for load in one.loads) for one in (suite.ollama, other)]
        assert [["a:1", "b:1", "c:1", "d:1"]] * hosts == each[:hosts]


@WORKERS
def test_without_it_they_are_loaded_again_and_again(suite: Suite, workers: list[str]) -> None:
    suite.write({"test_it.py": IN_TURN.replace("assert name in loaded_models()", "pass")})
    suite.run(*workers)
    assert len(loads(suite)) > 4


def test_it_can_stand_in_the_configuration_file(suite: Suite) -> None:
    suite.write({"pytest.ini": "[pytest]\nollama_group_by_model = true\n"})
    suite.run()
    assert 4 == len(loads(suite))


def test_off_leaves_the_order(suite: Suite) -> None:
    run = suite.run("--collect-only", "-q", GROUP, "--ollama-off")
    assert ["0-a:1", "0-b:1"] == re.findall(r"\[(.*)\]", run.out)[:2]


def test_what_is_missing_is_pulled_before_the_first_test_and_loaded_in_its_turn(
    suite: Suite,
) -> None:
    for name in "ab":
        suite.ollama.add(ScriptedModel(f"{name}:1", digest=name * 64, size=1_300_000))
    run = suite.run(GROUP, "--ollama-pull=missing", "-v")
    assert {"passed": 24} == run.counts
    lines = run.out.splitlines()
    first_test = next(i for i, line in enumerate(lines) if "PASSED" in line)
    pulled = [i for i, line in enumerate(lines) if re.search("ollama: .*:1 pulled .* in", line)]
    assert 2 == len(pulled)
    assert max(pulled) < first_test
    # The one whose turn is first is loaded there, too.
    assert any(re.search(r"a:1 pulled .*, loaded in", line) for line in run.ours)
    assert any(re.search(r"b:1 +pulled .* +loaded in", line) for line in run.table)
    assert 4 == len(loads(suite))


@WORKERS
def test_a_model_that_cannot_be_had_fails_its_own_tests_only(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(ScriptedModel("c:1"))
    run = suite.run(GROUP, "--ollama-on-unavailable=fail", *workers)
    assert {"passed": 18, "error": 6} == run.counts
    assert "c:1 is not pulled" in run.out
    assert ["a:1", "b:1", "d:1"] == loads(suite)


@WORKERS
def test_a_model_that_does_not_load_in_its_turn_ends_the_run_where_it_is_to(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(ScriptedModel("c:1", present=True, digest="c" * 64, load_error="no room"))
    run = suite.run(GROUP, "--ollama-on-unavailable=exit", *workers)
    assert 2 == run.ret
    assert "no room" in run.out
    assert "d:1" not in loads(suite)


def test_the_order_is_the_same_each_time_and_stable(suite: Suite) -> None:
    runs = [suite.run("--collect-only", "-q", GROUP).out for _ in range(2)]
    ids = [re.findall(r"\[(.*)\]", out) for out in runs]
    assert ids[0] == ids[1]
    assert [f"{n}-{name}:1" for name in "abcd" for n in range(6)] == ids[0]


# Fixtures of classes and modules: a test without a model stays beside its neighbours.
SCOPES = """
    import pytest

    @pytest.fixture(scope="session")
    def of_session(): print("SETUP session")

    @pytest.fixture(scope="package", autouse=True)
    def of_package(request): print("SETUP package")

    @pytest.fixture(scope="module", autouse=True)
    def of_module(request, of_session): print("SETUP module")

    @pytest.fixture(scope="class", autouse=True)
    def of_class(request): print("SETUP class")
"""


def module(*models: str) -> str:
    """A module with a test for each of *models*; an empty one stands for a test without."""
    mark = "@pytest.mark.requires_model('{}:1')\n"
    tests = [
        f"{mark.format(model) if model else ''}def test_{n}(): pass\n"
        for n, model in enumerate(models)
    ]
    return "import pytest\n" + "".join(tests)


def set_ups(suite: Suite, *args: str) -> dict[str, int]:
    out = suite.run("-s", *args).out
    return {name: out.count(f"SETUP {name}") for name in ("session", "package", "module")}


def test_fixtures_are_not_set_up_more_often_where_each_module_needs_one_set(suite: Suite) -> None:
    (suite.pytester.path / "test_it.py").unlink()
    files = {"conftest.py": SCOPES}
    for number, models in enumerate(
        [["a", "", "a"], ["", "b"], ["", "a", ""], ["", ""], ["b", ""], ["c"], ["b"]]
    ):
        files[f"test_{number}.py"] = module(*models)
    suite.write(files)
    without = set_ups(suite)
    assert {"session": 1, "package": 1, "module": 7} == without
    assert without == set_ups(suite, GROUP)


def test_modules_that_need_two_sets_are_set_up_for_each(suite: Suite) -> None:
    (suite.pytester.path / "test_it.py").unlink()
    suite.write({"conftest.py": SCOPES, "test_1.py": module("a", "b"), "test_2.py": module("a")})
    assert {"session": 1, "package": 1, "module": 3} == set_ups(suite, GROUP)


# pytest-xdist


@pytest.mark.parametrize("dist", ["each", "loadscope", "loadfile", "loadgroup"])
def test_an_order_of_xdists_own_is_refused(suite: Suite, dist: str) -> None:
    run = suite.run(GROUP, "-n2", f"--dist={dist}")
    assert 4 == run.ret
    assert (
        f"--ollama-group-by-model has its own order, and cannot be combined with --dist={dist}. "
        "Leave one of them out."
    ) in run.err


def test_a_bad_order_in_a_file_is_named(suite: Suite) -> None:
    suite.write({"pytest.ini": "[pytest]\nollama_group_by_model = true\n"})
    run = suite.run("-n2", "--dist=loadfile")
    assert 4 == run.ret
    assert "ollama_group_by_model in pytest.ini has its own order" in run.err


@pytest.mark.parametrize("dist", ["load", "worksteal"])
def test_these_are_replaced(suite: Suite, dist: str) -> None:
    assert {"passed": 24} == suite.run(GROUP, "-n2", f"--dist={dist}").counts
    assert 4 == len(loads(suite))


CRASHING = """
from tools import *

def needs(name):
    return pytest.param(f"{name}:1", marks=pytest.mark.requires_model(f"{name}:1"))

@pytest.mark.parametrize("name", [*map(needs, "abcd"), ""])
@pytest.mark.parametrize("n", range(6))
def test_it(n, name):
    if (n, name) in [(2, "b:1"), (4, "")]:
        os._exit(7)
    if name:
        assert name in loaded_models()
        ask(name)
"""


def test_crashing_workers_cost_their_own_test_only(suite: Suite) -> None:
    suite.write({"test_it.py": CRASHING})
    run = suite.run(GROUP, "-n3")
    assert {"passed": 28, "failed": 2} == run.counts
    assert ["a:1", "b:1", "c:1", "d:1"] == loads(suite)
    for crashed in ("2-b:1", "4-"):
        assert f"crashed while running 'test_it.py::test_it[{crashed}]'" in run.out


# While the first one runs, the other worker holds a test whose turn has not come.
ENDS = """
from tools import *
import time

@pytest.mark.requires_model("a:1")
def test_ends():
    time.sleep(1)
    HOW

@pytest.mark.requires_model("b:1")
@pytest.mark.parametrize("n", range(3))
def test_later(n):
    pass
"""


def test_after_too_many_crashes_nothing_is_loaded_any_more(suite: Suite) -> None:
    suite.write({"test_it.py": ENDS.replace("HOW", "os._exit(7)")})
    run = suite.run(GROUP, "-n2", "--max-worker-restart=0", "-rs")
    assert {"failed": 1, "skipped": 1} == run.counts
    assert "worker restarting disabled" in run.out
    assert "skipped: the run is stopping early" in run.out
    assert ["a:1"] == loads(suite)


def test_after_a_failure_with_x_nothing_is_loaded_any_more(suite: Suite) -> None:
    suite.write({"test_it.py": ENDS.replace("HOW", "assert False")})
    run = suite.run(GROUP, "-n2", "-x")
    # xdist cannot take back what the workers hold: one of them one test, the other perhaps, too.
    assert 1 == run.counts["failed"]
    assert {"failed", "skipped"} == set(run.counts)
    assert ["a:1"] == loads(suite)


def test_a_suite_that_needs_no_model_runs_as_ever(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": "import pytest\n@pytest.mark.parametrize('n', range(50))\ndef test_it(n): pass\n"
        }
    )
    run = suite.run(GROUP, "-n2")
    assert ({"passed": 50}, []) == (run.counts, run.ours)


def test_ctrl_c_ends_it_at_once(suite: Suite) -> None:
    suite.write({"test_it.py": IN_TURN + "    print('GO'); import time; time.sleep(60)\n"})
    process = suite.start(GROUP, "-n2", "-s", "-v")
    wait_for(process, "test_it")
    process.send_signal(2)
    assert 2 == end(process)[0]


@WORKERS
def test_tests_that_name_no_model_need_what_is_listed(suite: Suite, workers: list[str]) -> None:
    suite.write(
        {
            "test_it.py": """
            from tools import *

            @pytest.mark.parametrize("n", range(4))
            @pytest.mark.requires_model
            def test_any(n, ollama_models): ollama_models["d:1"]

            @pytest.mark.parametrize("n", range(4))
            @pytest.mark.requires_model("a:1")
            def test_one(n): assert "a:1" in loaded_models()
            """
        }
    )
    run = suite.run(GROUP, "--ollama-preload=d:1 c:1", *workers)
    assert {"passed": 8} == run.counts
    assert {"d:1", "c:1"} == set(loads(suite)[:2])
    assert ["a:1"] == loads(suite)[2:]


PAIRS = """
from tools import *

def needs(*names):
    return pytest.mark.requires_model(*(f"{name}:1" for name in names))

def warm(*names):
    assert {f"{name}:1" for name in names} <= set(loaded_models())
    for name in names: ask(f"{name}:1")

@needs("a")
def test_a(): warm("a")

@needs("b")
def test_b(): warm("b")

@needs("c")
def test_c(): warm("c")

@needs("d")
def test_d(): warm("d")

@needs("b", "a")
def test_ba(): warm("a", "b")

@needs("b", "c")
@pytest.mark.parametrize("n", range(2))
def test_bc(n): warm("b", "c")
"""


@WORKERS
def test_the_models_of_a_set_do_not_evict_each_other(suite: Suite, workers: list[str]) -> None:
    suite.write({"test_it.py": PAIRS})
    run = suite.run(GROUP, *workers)
    assert {"passed": 7} == run.counts
    assert 5 == len(loads(suite))
    told = re.findall(
        r"^! \S+ was evicted.* and loaded again before .*\n  → To avoid that, raise the server's "
        r"OLLAMA_MAX_LOADED_MODELS\.$",
        run.out,
        re.MULTILINE,
    )
    assert 1 == len(told), run.out


def test_nothing_is_unloaded_where_all_fit(suite: Suite) -> None:
    suite.write({"test_it.py": PAIRS.replace('@needs("d")', "").replace('warm("d")', "pass")})
    assert {"passed": 7} == suite.run(GROUP).counts
    assert ["a:1", "b:1", "c:1"] == loads(suite)
