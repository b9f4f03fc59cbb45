"""What becomes of loaded models at the end of a run."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.conftest import LLAMA, ONE_TEST, Suite
from tests.test_faults import end, until, wait_for

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
THERE = replace(LLAMA, present=True)
UNLOAD = "--ollama-at-end=unload"


def resident(suite: Suite) -> list[str]:
    return [one.model.name for one in suite.ollama.scheduler.resident()]


@WORKERS
@pytest.mark.parametrize("args", [[], ["--ollama-preload=llama3.2:1b"]], ids=["marked", "listed"])
def test_what_the_run_has_loaded_is_unloaded_where_that_is_asked_for(
    suite: Suite, workers: list[str], args: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    assert {"passed": 1} == suite.run(UNLOAD, *args, *workers).counts
    assert [] == resident(suite)
    assert 1 == len(suite.ollama.loads)


def test_otherwise_it_stays_for_the_next_run(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    suite.run()
    assert ["llama3.2:1b"] == resident(suite)


@WORKERS
def test_what_was_found_loaded_stays(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    suite.run()
    suite.run(UNLOAD, *workers)
    assert ["llama3.2:1b"] == resident(suite)


@WORKERS
def test_a_model_that_a_test_has_brought_at_run_time_is_unloaded_too(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": "def test_it(ollama_models): ollama_models['llama3.2:1b']\n"})
    assert {"passed": 1} == suite.run(UNLOAD, *workers).counts
    assert [] == resident(suite)


@WORKERS
def test_it_is_unloaded_after_a_failure_that_stops_the_run(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": "def test_it(ollama_model): assert False\n"})
    suite.run(UNLOAD, "-x", "--ollama-preload=llama3.2:1b", *workers)
    assert [] == resident(suite)


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
    wait_for(process, "ollama: llama3.2:1b ready")
    until((suite.pytester.path / "begun").exists)
    process.send_signal(signal.SIGINT)
    code, _ = end(process)
    assert 2 == code
    assert [] == resident(suite)


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
