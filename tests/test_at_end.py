"""What becomes of loaded models at the end of a run."""

from __future__ import annotations

import signal
import textwrap
from dataclasses import replace

import pytest

from tests import forked
from tests.conftest import LLAMA, ONE_TEST, Suite
from tests.test_faults import end, until, wait_for

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
THERE = replace(LLAMA, present=True)
UNLOAD = "--ollama-unload"


def loaded_models(suite: Suite) -> list[str]:
    return [one.model.name for one in suite.ollama.scheduler.runners_in_memory()]


@WORKERS
@pytest.mark.parametrize("args", [[], ["--ollama-preload=llama3.2:1b"]], ids=["marked", "listed"])
def test_what_the_run_has_loaded_is_unloaded_where_that_is_asked_for(
    suite: Suite, workers: list[str], args: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    assert {"passed": 1} == suite.run(UNLOAD, *args, *workers).counts
    assert [] == loaded_models(suite)
    assert 1 == len(suite.ollama.loads)


def test_otherwise_it_stays_for_the_next_run(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    suite.run()
    assert ["llama3.2:1b"] == loaded_models(suite)


@WORKERS
def test_what_was_found_loaded_stays(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    suite.run()
    suite.run(UNLOAD, *workers)
    assert ["llama3.2:1b"] == loaded_models(suite)


@WORKERS
def test_a_model_that_a_test_has_asked_for_at_run_time_is_unloaded_too(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": "def test_it(ollama_models): ollama_models['llama3.2:1b']\n"})
    assert {"passed": 1} == suite.run(UNLOAD, *workers).counts
    assert [] == loaded_models(suite)


@WORKERS
def test_it_is_unloaded_after_a_failure_that_stops_the_run(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": "def test_it(ollama_model): assert False\n"})
    suite.run(UNLOAD, "-x", "--ollama-preload=llama3.2:1b", *workers)
    assert [] == loaded_models(suite)


@WORKERS
def test_it_is_unloaded_after_ctrl_c(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import pathlib, time, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it():
                    pathlib.Path("begun").touch()
                    time.sleep(60)
            """
        }
    )
    process = suite.start(UNLOAD, "-s", *workers)
    wait_for(process, "ollama: llama3.2:1b loaded")
    until((suite.pytester.path / "begun").exists)
    process.send_signal(signal.SIGINT)
    code, _ = end(process)
    assert 2 == code
    assert [] == loaded_models(suite)


def test_a_server_that_is_gone_by_then_is_no_error(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import pathlib, time, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it():
                    print("GO", flush=True)
                    while not pathlib.Path("went").exists(): time.sleep(0.01)
            """
        }
    )
    process = suite.start(UNLOAD, "-s")
    wait_for(process, "GO")
    suite.ollama.stop()
    (suite.pytester.path / "went").touch()
    code, out = end(process)
    assert (0, True) == (code, "1 passed" in out)


WAITS = """
    import time
    from pathlib import Path
    import pytest

    @pytest.mark.requires_model("llama3.2:1b")
    def test_waits():
        Path("began").touch()
        begin = time.monotonic()
        while not Path("go").exists():
            assert time.monotonic() - begin < 60
            time.sleep(0.02)
"""


class Beside:
    """Another run of the same user on the same server, inside a test that needs the model."""

    def __init__(self, suite: Suite, *args: str) -> None:
        self.folder = suite.pytester.path / "beside"
        suite.write({"beside/test_waits.py": WAITS})
        command = [*suite.command(*args)[2:], "-p", "no:cacheprovider", "test_waits.py"]
        self.process = forked.start(*command, cwd=self.folder)
        until(lambda: (self.folder / "began").exists())

    def end(self) -> str:
        (self.folder / "go").touch()
        return self.process.communicate(timeout=60)[0]


@WORKERS
@pytest.mark.parametrize("spelling", ["127.0.0.1", "localhost"])
def test_what_another_run_uses_stays_and_the_last_one_unloads_it(
    suite: Suite, workers: list[str], spelling: str
) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    host = suite.ollama.url.replace("127.0.0.1", spelling)
    first = Beside(suite, UNLOAD, f"--ollama-host={host}", *workers)
    second = suite.run(UNLOAD, *workers, "test_chat.py")
    # It was found loaded.
    assert ({"passed": 1}, ["llama3.2:1b"]) == (second.counts, loaded_models(suite))
    assert "1 passed" in first.end()
    assert [] == loaded_models(suite)


@WORKERS
def test_the_run_that_has_loaded_it_leaves_it_to_the_one_that_goes_on(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({**ONE_TEST, "conftest.py": STARTS_ANOTHER})
    run = suite.run(UNLOAD, *workers, "test_chat.py")
    assert {"passed": 1} == run.counts
    assert "llama3.2:1b stays loaded: another run uses it, and unloads it" in run.out
    assert ["llama3.2:1b"] == loaded_models(suite)
    (suite.pytester.path / "beside" / "go").touch()
    until(lambda: not loaded_models(suite))


# Begins when the model is loaded, and goes on when this run is over.
STARTS_ANOTHER = f"""
    import os, subprocess, sys, time
    from pathlib import Path
    import pytest

    @pytest.fixture(scope="session", autouse=True)
    def another():
        folder = Path("beside")
        try:
            folder.mkdir()
        except FileExistsError:
            return
        (folder / "test_waits.py").write_text({textwrap.dedent(WAITS)!r})
        environ = {{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}}
        command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "no:cacheprovider"]
        subprocess.Popen(command, cwd=folder, env=environ | {{"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}},
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.monotonic()
        while not (folder / "began").exists():
            assert time.monotonic() - begin < 60
            time.sleep(0.02)
"""


def test_a_run_that_was_killed_keeps_nothing(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    beside = Beside(suite)
    suite.ollama.unload(LLAMA.name)
    beside.process.kill()
    beside.process.communicate(timeout=60)
    run = suite.run(UNLOAD, "test_chat.py")
    assert "stays loaded" not in run.out
    assert [] == loaded_models(suite)
