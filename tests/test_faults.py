"""Killed processes, Ctrl-C and servers that fail: nothing hangs, and what happened is said."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.emulator import Emulator
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.forked import Process

BOUND_S = 30.0


def until(check: Callable[[], object]) -> None:
    """Wait for *check*, within a bound that no sound run comes near."""
    deadline = time.monotonic() + BOUND_S
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_for(process: Process, text: str) -> None:
    """Read the output up to a line with *text*."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), "the output ended without it"


def end(process: Process) -> tuple[int, str]:
    out, _ = process.communicate(timeout=BOUND_S)
    until(lambda: not group_is_alive(process.pid))
    return process.wait(), out


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])


@WORKERS
def test_ctrl_c_in_step_1_ends_the_pull_and_says_so(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, size=10**9, pull_rate=10**6))
    suite.write(ONE_TEST)
    process = suite.start("--ollama-preload=llama3.2:1b", *workers)
    wait_for(process, "llama3.2:1b pulling")
    until(lambda: suite.ollama.calls("pull"))
    process.send_signal(signal.SIGINT)
    code, out = end(process)
    assert 2 == code
    assert "ollama: interrupted: llama3.2:1b pulling. A pull goes on where it stopped." in out
    assert "KeyboardInterrupt" in out
    assert [] == suite.ollama.loads


@WORKERS
def test_ctrl_c_while_waiting_for_the_server_says_so(suite: Suite, workers: list[str]) -> None:
    suite.ollama.stop()
    suite.write(ONE_TEST)
    process = suite.start("--ollama-preload=llama3.2:1b", "--ollama-wait=600", *workers)
    wait_for(process, "waiting for http")
    process.send_signal(signal.SIGINT)
    code, out = end(process)
    assert 2 == code
    assert f"ollama: interrupted: waiting for {suite.ollama.url}" in out


@WORKERS
def test_ctrl_c_in_step_2_ends_the_load_and_says_so(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    suite.write(ONE_TEST)
    process = suite.start(*workers)
    until(lambda: suite.ollama.calls("generate"))
    # Under xdist the workers need a moment to reach the state in which they wait for tests.
    process.send_signal(signal.SIGINT)
    code, out = end(process)
    assert 2 == code
    assert "ollama: interrupted: llama3.2:1b loading." in out
    assert [] == suite.ollama.loads


@WORKERS
def test_a_server_that_dies_during_a_load_fails_the_model(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    suite.write(ONE_TEST)
    process = suite.start("-rs", *workers)
    until(lambda: suite.ollama.calls("generate"))
    suite.ollama.stop()
    code, out = end(process)
    assert 0 == code
    assert 'llama3.2:1b does not load: "connection lost while loading' in out
    assert "The server went away; its log says why." in out
    assert "1 skipped" in out


@WORKERS
def test_a_server_that_dies_during_a_pull_ends_the_run(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, size=10**9, pull_rate=10**6))
    suite.write(ONE_TEST)
    process = suite.start("--ollama-preload=llama3.2:1b", "--ollama-wait=0.5", *workers)
    until(lambda: suite.ollama.pulling)
    suite.ollama.stop()
    code, out = end(process)
    assert 2 == code
    assert "llama3.2:1b (from --ollama-preload) could not be pulled: connection lost" in out
    assert "then connection refused for 0.5 s (--ollama-wait)" in out


@WORKERS
def test_a_server_that_comes_back_during_a_pull_goes_on(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, size=10**9, pull_rate=10**6))
    suite.write(ONE_TEST)
    process = suite.start("--ollama-preload=llama3.2:1b", *workers)
    until(lambda: suite.ollama.pulling)
    suite.ollama.stop()
    suite.ollama.add(LLAMA)
    suite.ollama.start()
    code, out = end(process)
    assert 0 == code
    assert "resuming" in out
    assert "llama3.2:1b pulled" in out
    assert 2 == len(suite.ollama.pulls)


def test_a_killed_controller_leaves_no_worker(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    suite.write(ONE_TEST)
    process = suite.start("-n2")
    until(lambda: suite.ollama.calls("generate"))
    process.kill()
    code, _ = end(process)
    assert -signal.SIGKILL == code
    until(lambda: suite.ollama.scheduler.loading is None)


def test_a_killed_worker_is_replaced_and_its_successor_brings_the_model(suite: Suite) -> None:
    # The model is asked for at run time, so a worker leads; it is killed in the midst of the load.
    suite.ollama.add(replace(LLAMA, present=True, load_s=1.5))
    suite.write(
        {
            "test_late.py": """
                import os, pathlib, pytest

                PIDS = pathlib.Path(__file__).parent / "pids"

                @pytest.mark.parametrize("n", range(4))
                def test_late(ollama_models, n):
                    with PIDS.open("a") as file:
                        file.write(f"{os.getpid()}\\n")
                    assert ollama_models["llama3.2:1b"].name
            """
        }
    )
    process = suite.start("-n2", "-rA")
    until(lambda: suite.ollama.calls("generate"))
    leader = [int(line) for line in (suite.pytester.path / "pids").read_text().split()]
    # Both wait for the model, one as the leader: kill them in turn, the load must be done anew.
    os.kill(leader[0], signal.SIGKILL)
    _, out = end(process)
    assert "3 passed" in out
    assert 1 == len(suite.ollama.loads)


# Pulls that stop half-way: the first one only, so that asking again is the cure.

PRELOAD = "--ollama-preload=llama3.2:1b"
IMPATIENT = ("-o", "ollama_stall=0.3")
STALLED = (
    "llama3.2:1b pulling: no new byte for 0.3 s (--ollama-stall) at 400 kB of 1.3 MB, resuming"
)


@WORKERS
def test_a_pull_that_stalls_is_dropped_and_resumed(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, pull_stall_at=400_000, pull_faults=1))
    suite.write(ONE_TEST)
    run = suite.run(PRELOAD, *IMPATIENT, *workers)
    assert {"passed": 1} == run.counts
    assert STALLED in run.ours
    assert 2 == len(suite.ollama.pulls)


def test_a_stall_that_ends_by_itself_in_time_is_none(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, pull_stall_at=400_000, pull_stall_s=0.3))
    suite.write(ONE_TEST)
    run = suite.run(PRELOAD)
    assert {"passed": 1} == run.counts
    assert "resum" not in run.out
    assert 1 == len(suite.ollama.pulls)


def test_bytes_that_come_a_second_time_are_no_progress(suite: Suite) -> None:
    # The server itself asks for a stalled part again, from its start: completed falls and climbs.
    again = replace(LLAMA, pull_rate=4e6, pull_stall_at=400_000, pull_retry_s=0.1, pull_faults=1)
    suite.ollama.add(again)
    suite.write(ONE_TEST)
    run = suite.run(PRELOAD, *IMPATIENT)
    assert {"passed": 1} == run.counts
    assert STALLED in run.ours
    assert 2 == len(suite.ollama.pulls)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"pull_cut": True}, "the server ended the stream before 'success' at 650 kB of 1.3 MB"),
        ({"pull_drop_at": 400_000}, "connection lost at 400 kB of 1.3 MB"),
        ({"pull_drop_at": 0}, "connection lost at 0 B of 1.3 MB"),
    ],
    ids=["truncated", "dropped", "dropped at once"],
)
def test_a_pull_that_ends_without_a_word_is_resumed(suite: Suite, fault: Any, why: str) -> None:
    suite.ollama.add(replace(LLAMA, pull_faults=1, **fault))
    suite.write(ONE_TEST)
    run = suite.run(PRELOAD)
    assert {"passed": 1} == run.counts
    assert f"llama3.2:1b pulling: {why}, resuming" in run.ours
    assert "resumed once" in run.table[0]
    assert 2 == len(suite.ollama.pulls)


# Servers that start, runners that die.


def test_a_server_that_starts_slowly_is_waited_for(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes the connection, and answers nothing until it is ready.
    suite.write(ONE_TEST)
    with Emulator([LLAMA], start_s=2.0) as late:
        monkeypatch.setenv("OLLAMA_HOST", late.url)
        run = suite.run(PRELOAD)
    asked = {request.path: request.at for request in reversed(late.requests)}
    assert {"passed": 1} == run.counts
    assert asked["/api/pull"] - asked["/api/version"] > 0.1


def test_a_server_that_starts_too_slowly_is_said_to_give_no_answer(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write(ONE_TEST)
    with Emulator([LLAMA], start_s=600) as late:
        monkeypatch.setenv("OLLAMA_HOST", late.url)
        run = suite.run(PRELOAD, "--ollama-wait=0.5")
    assert 2 == run.ret
    assert f"no Ollama at {late.url} (from OLLAMA_HOST): no answer for 0.5 s." in run.err


@pytest.mark.parametrize(("args", "loads"), [([], 1), (["--ollama-warm=prompt"], 2)])
def test_a_model_whose_runner_has_died_is_left_to_the_test_that_uses_it(
    suite: Suite, args: list[str], loads: int
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    suite.run()
    # The server still lists it as loaded, and to what is listed nothing is sent unless asked for.
    suite.ollama.kill_runner("llama3.2:1b")
    assert {"passed": 1} == suite.run(*args).counts
    assert loads == len(suite.ollama.loads)


@WORKERS
def test_a_runner_that_dies_in_the_warm_up_fails_the_model(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, present=True, eval_s=600))
    suite.write(ONE_TEST)
    process = suite.start("-rs", "--ollama-warm=prompt", *workers)
    until(lambda: suite.ollama.loads)
    suite.ollama.kill_runner("llama3.2:1b")
    code, out = end(process)
    assert 0 == code
    error = "an error was encountered while running the model: unexpected EOF"
    assert f'llama3.2:1b does not load: "{error}".' in out
    assert "1 skipped" in out


@pytest.mark.parametrize(
    ("file", "workers"),
    [
        ("slots", []),
        ("slots", ["-n2"]),
        ("slot-", ["-n2"]),
        ("using-", ["-n2"]),
        ("looks-", []),
        ("looks-", ["-n2"]),
        ("requirements-gw1", ["-n2"]),
    ],
)
def test_where_a_file_cannot_be_written_tests_run_without(
    suite: Suite, file: str, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            "conftest.py": f"""
                import errno, io, os

                HERE = os.path.dirname(__file__)

                def full(plain):
                    def open_(path, *args, **options):
                        if os.path.basename(str(path)).startswith({file!r}):
                            plain_open(os.path.join(HERE, "full"), "a").close()
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                        return plain(path, *args, **options)
                    return open_

                plain_open = io.open
                os.open, io.open = full(os.open), full(io.open)
            """,
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(4))
                def test_it(n): pass
            """,
        }
    )
    run = suite.run("--ollama-max-parallel=1", "--ollama-preload=llama3.2:1b", *workers)
    assert (0, {"passed": 4}) == (run.ret, run.counts)
    assert "Traceback" not in run.out + run.err
    assert (suite.pytester.path / "full").exists()
