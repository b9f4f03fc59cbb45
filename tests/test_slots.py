"""At most so many tests that need models at once."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from tests.conftest import LLAMA, Suite
from tests.test_faults import end, until

# Each worker has a test that takes the server for half a second; its client waits 2 s at most.
BUSY = """
    import json, os, pathlib, time, urllib.request
    import pytest

    HERE = pathlib.Path(__file__).parent

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(6))
    def test_it(n, worker_id):
        (HERE / f"in-{worker_id}").touch()
        body = {"model": "llama3.2:1b", "prompt": "Hi", "stream": False}
        request = urllib.request.Request(
            os.environ["OLLAMA_HOST"] + "/api/generate", json.dumps(body).encode()
        )
        urllib.request.urlopen(request, timeout=2.0).close()
        (HERE / f"in-{worker_id}").unlink()
"""
PRELOAD = ["--ollama-preload=llama3.2:1b", "--ollama-warm=load"]


@pytest.fixture
def busy(suite: Suite) -> Suite:
    """A suite whose server takes half a second for each answer, one at a time."""
    suite.ollama.add(replace(LLAMA, present=True, eval_s=0.5))
    suite.write({"test_it.py": BUSY})
    return suite


def test_without_slots_some_clients_run_into_their_time_out(busy: Suite) -> None:
    run = busy.run("-n6", *PRELOAD)
    assert run.counts["failed"] >= 1
    assert "timed out" in run.out


@pytest.mark.parametrize("slots", [1, 2])
def test_with_slots_none_does(busy: Suite, slots: int) -> None:
    assert {"passed": 6} == busy.run("-n6", f"--ollama-max-parallel={slots}", *PRELOAD).counts


def test_waiting_is_no_part_of_a_tests_time(busy: Suite) -> None:
    timeout = ["-p", "timeout", "--timeout=2"]
    assert {"passed": 6} == busy.run("-n6", "--ollama-max-parallel=1", *timeout, *PRELOAD).counts


def test_tests_without_a_model_do_not_wait(busy: Suite) -> None:
    busy.ollama.add(replace(LLAMA, present=True, eval_s=600.0))
    busy.write(
        {
            "test_it.py": BUSY.replace("timeout=2.0", "timeout=60").replace("range(6)", "range(1)"),
            "test_plain.py": """
                import pytest

                @pytest.mark.parametrize("n", range(12))
                def test_plain(n): pass
            """,
        }
    )
    process = busy.start("-n2", "--ollama-max-parallel=1", "-v", *PRELOAD)
    assert process.stdout is not None
    passed = 0
    for line in process.stdout:
        passed += "PASSED" in line and "test_plain" in line
        # xdist holds back each worker's last test until it has another one for it, and some are
        # behind the one that waits.
        if passed == 4:
            break
    process.send_signal(signal.SIGINT)
    end(process)
    assert 4 == passed


def test_the_slot_of_a_worker_that_dies_is_free(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            "test_it.py": """
                import os, pathlib, pytest

                HERE = pathlib.Path(__file__).parent

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(4))
                def test_it(n):
                    if n == 0:
                        (HERE / "pid").write_text(str(os.getpid()))
                        while True: pass
            """
        }
    )
    process = suite.start("-n2", "--ollama-max-parallel=1", "-rA")
    pid = suite.pytester.path / "pid"
    until(lambda: pid.exists() and pid.read_text())
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _, out = end(process)
    assert "3 passed" in out


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_slots_that_is_none_is_refused(suite: Suite, value: str) -> None:
    run = suite.run(f"--ollama-max-parallel={value}")
    assert 4 == run.ret
    assert (
        f"'{value}' is not a valid --ollama-max-parallel. Expected a whole number, at least 1."
        in (run.err)
    )
