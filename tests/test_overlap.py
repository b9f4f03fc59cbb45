"""Models come beside the tests that need none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from tests.conftest import LLAMA, Suite
from tests.test_faults import end, group_is_alive, until, wait_for
from tests.test_guard import TOOLS
from tests.unit.test_process import command_lines

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
OVERLAP = "--ollama-background"
SLOW = replace(LLAMA, present=True, load_s=1.5)
# The tests tell one after the other that they have run.
MIXED = """
from tools import *
import pathlib

def note(what):
    with open(pathlib.Path(__file__).parent / "log", "a") as log:
        log.write(what + chr(10))

@pytest.mark.requires_model("llama3.2:1b")
def test_chat():
    assert "llama3.2:1b" in loaded_models()
    note("chat")

@pytest.mark.parametrize("n", range(4))
def test_other(n):
    note("other")
"""


@pytest.fixture
def suite(suite: Suite) -> Suite:
    """A suite of a test that needs a model, which loads for a while, before others that do not."""
    suite.ollama.add(SLOW)
    suite.write({"tools.py": TOOLS, "test_it.py": MIXED})
    return suite


def log(suite: Suite) -> list[str]:
    path = suite.pytester.path / "log"
    return path.read_text("utf-8").split() if path.exists() else []


@WORKERS
@pytest.mark.parametrize("listed", [[], ["--ollama-preload=llama3.2:1b"]], ids=["", "listed"])
def test_tests_that_need_none_run_while_models_come(
    suite: Suite, workers: list[str], listed: list[str]
) -> None:
    run = suite.run(OVERLAP, "-v", *listed, *workers)
    assert {"passed": 5} == run.counts
    assert [*["other"] * 4, "chat"] == log(suite)
    assert 1 == len(suite.ollama.loads)
    (row,) = run.table
    assert re.fullmatch(r"✓ llama3.2:1b   loaded in [1-9][\d.]* s   1 test", row), run.out
    assert "ready after" not in run.out
    assert "" == run.err


@WORKERS
def test_who_waited_is_told(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(SLOW, load_s=6.0))
    run = suite.run(OVERLAP, *workers)
    assert re.search(
        r"^test_it.py::test_chat waited [\d.]+ s for models \(not counted in the test's duration\)$",
        run.out,
        re.MULTILINE,
    ), run.out


@WORKERS
def test_the_wait_is_no_part_of_the_tests_time(suite: Suite, workers: list[str]) -> None:
    run = suite.run(OVERLAP, "-p", "timeout", "--timeout=1", "--durations=0", "-vv", *workers)
    assert {"passed": 5} == run.counts
    times = re.findall(r"([\d.]+)s (?:setup|call) +test_it.py::test_chat", run.out)
    assert max(map(float, times)) < 1


@WORKERS
def test_a_test_waits_for_its_own_model_only(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, name="slow:1", present=True, digest="f" * 64, load_s=3))
    suite.write(
        {
            "test_it.py": MIXED
            + """
@pytest.mark.requires_model("slow:1")
def test_slow():
    note("slow")
"""
        }
    )
    run = suite.run(OVERLAP, *workers)
    assert {"passed": 6} == run.counts
    assert ["chat", "slow"] == log(suite)[-2:]


def test_mocks_and_frozen_clocks_neither_disturb_it_nor_see_it(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": """
            import httpx, pytest, respx, time

            @pytest.mark.requires_model("llama3.2:1b")
            def test_chat(): pass

            @respx.mock
            def test_other():
                route = respx.get("https://example.org").mock(return_value=httpx.Response(204))
                until = time.perf_counter() + 2.5
                while time.perf_counter() < until:
                    assert 204 == httpx.get("https://example.org").status_code
                assert route.call_count == len(respx.calls)

            def test_transport(monkeypatch):
                # As pytest-httpx does.
                def answer(self, request):
                    return httpx.Response(418)
                monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
                until = time.perf_counter() + 0.5
                while time.perf_counter() < until:
                    assert 418 == httpx.get("https://example.org").status_code

            def test_clock(monkeypatch):
                monkeypatch.setattr(time, "monotonic", lambda: 0.0)
                monkeypatch.setattr(time, "time", lambda: 0.0)
                time.sleep(0.5)

            def test_sockets(monkeypatch):
                import socket
                monkeypatch.setattr(socket, "socket", None)
                time.sleep(0.5)
            """
        }
    )
    run = suite.run(OVERLAP)
    assert {"passed": 5} == run.counts, run.out
    assert 1 == len(suite.ollama.loads)


@pytest.mark.parametrize("server", ["up", "late"])
def test_workers_do_not_begin_what_the_controller_does(suite: Suite, server: str) -> None:
    suite.write(
        {
            "conftest.py": """
            import time
            import pytest, respx
            from pytest_ollama_warmup.warmup.preloader import Threads

            run = Threads._run

            def late(*args):
                time.sleep(1)
                return run(*args)

            Threads._run = late

            @pytest.fixture(scope="session", autouse=True)
            def mocked():
                with respx.mock(assert_all_called=False):
                    yield
            """
        }
    )
    if server == "late":
        suite.ollama.stop()
        threading.Timer(4.0, suite.ollama.start).start()
    run = suite.run(OVERLAP, "-n2", "--ollama-wait=60")
    assert {"passed": 5} == run.counts, run.out
    assert "cannot see whether models are still warm" in run.out
    assert 1 == len(suite.ollama.loads)


@WORKERS
def test_a_missing_model_is_pulled_beside(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=False, pull_rate=1_300_000))
    run = suite.run(OVERLAP, "--ollama-preload=llama3.2:1b", *workers)
    assert {"passed": 5} == run.counts
    assert [*["other"] * 4, "chat"] == log(suite)
    assert any(one.startswith("llama3.2:1b pulled 1.3 MB in") for one in run.ours), run.out


@WORKERS
def test_a_model_that_cannot_be_had_skips_its_tests(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=False))
    run = suite.run(OVERLAP, "-rs", *workers)
    assert {"passed": 4, "skipped": 1} == run.counts
    assert "llama3.2:1b is not pulled" in run.out


@WORKERS
def test_it_ends_the_run_where_it_is_to(suite: Suite, workers: list[str]) -> None:
    run = suite.run(OVERLAP, "--ollama-preload=nope", *workers)
    assert 2 == run.ret
    assert "no such model" in run.out
    assert ["other"] * 4 == log(suite)[:4]


@WORKERS
def test_a_server_that_is_not_there_is_waited_for_once(
    suite: Suite, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    run = suite.run(OVERLAP, "--ollama-wait=3", "-rs", *workers)
    assert {"passed": 4, "skipped": 1} == run.counts
    assert any(one.startswith("waiting for http://127.0.0.1:9 ") for one in run.ours)
    assert "no Ollama at http://127.0.0.1:9" in run.out


@WORKERS
def test_a_test_that_needs_ollama_and_no_model_by_name_finds_it(
    suite: Suite, workers: list[str]
) -> None:
    suite.write(
        {"test_more.py": "import pytest\n@pytest.mark.requires_model\ndef test_it(): pass\n"}
    )
    assert {"passed": 6} == suite.run(OVERLAP, *workers).counts


@WORKERS
def test_what_no_client_can_be_made_for_skips_its_tests(
    suite: Suite, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(suite.pytester.path / "none"))
    run = suite.run(OVERLAP, "--ollama-host=https://ollama.invalid", *workers)
    assert {"passed": 4, "skipped": 1} == run.counts
    assert "the certificates of SSL_CERT_FILE cannot be read" in run.out


@WORKERS
def test_in_a_suite_that_says_nothing_any_test_may_need_the_model(
    suite: Suite, workers: list[str]
) -> None:
    unmarked = MIXED.replace('@pytest.mark.requires_model("llama3.2:1b")', "")
    warm = 'assert "llama3.2:1b" in loaded_models()\n    note("other")'
    suite.write({"test_it.py": unmarked.replace('note("other")', warm)})
    run = suite.run(OVERLAP, "--ollama-preload=llama3.2:1b", *workers)
    assert {"passed": 5} == run.counts


@WORKERS
def test_a_listed_model_that_no_test_needs_is_seen_to_its_end(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, name="slow:1", present=True, digest="f" * 64, load_s=3))
    run = suite.run(OVERLAP, "--ollama-preload=slow:1 llama3.2:1b", *workers)
    assert {"passed": 5} == run.counts
    assert any(one.startswith("✓ slow:1 ") for one in run.table)


@WORKERS
def test_with_groups_each_is_loaded_in_its_turn(suite: Suite, workers: list[str]) -> None:
    for name in "ab":
        suite.ollama.add(replace(LLAMA, name=f"{name}:1", present=True, digest=name * 64))
    suite.write(
        {
            "test_it.py": """
            from tools import *

            @pytest.mark.parametrize("n", range(4))
            @pytest.mark.parametrize("name", ["", *(
                pytest.param(f"{one}:1", marks=pytest.mark.requires_model(f"{one}:1")) for one in "ab"
            )])
            def test_it(name, n):
                if name: assert name in loaded_models()
            """
        }
    )
    run = suite.run(OVERLAP, "--ollama-group-by-model", *workers)
    assert {"passed": 12} == run.counts
    assert ["a:1", "b:1"] == [one.model for one in suite.ollama.loads]


# The end


@WORKERS
def test_ctrl_c_ends_what_is_under_way(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    process = suite.start(OVERLAP, "-v", *workers)
    for _ in range(4):
        wait_for(process, "PASSED")
    # As from a terminal: all of its processes hear it.
    os.killpg(process.pid, signal.SIGINT)
    code, out = end(process)
    assert 2 == code, out
    assert "Traceback" not in out


def helpers(suite: Suite) -> list[int]:
    """The processes that bring models for runs of this suite."""
    where = str(suite.pytester.path)
    return [
        pid for pid, line in command_lines().items() if "warmup.child" in line and where in line
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_ends_early(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("TMPDIR", str(suite.pytester.path))
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    process = suite.start(OVERLAP, "-v")
    for _ in range(4):
        wait_for(process, "PASSED")
    assert 1 == len(helpers(suite))
    process.send_signal(number)
    until(lambda: not helpers(suite))
    process.kill()
    process.wait()
    until(lambda: not group_is_alive(process.pid))
    assert process.stdout is not None
    process.stdout.close()


@WORKERS
def test_after_a_failure_with_x_nothing_is_waited_for(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=600))
    suite.write({"test_it.py": MIXED.replace('note("other")', "assert n < 1")})
    run = suite.run(OVERLAP, "-x", "--ollama-wait=5", "-p", "timeout", "--timeout=60", *workers)
    assert run.counts["failed"] >= 1
    assert "ready" not in run.out


DIES = """
    import os, signal, subprocess
    from pytest_ollama_warmup.warmup import child

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.kill()

    child.subprocess.Popen = Popen
"""


def test_a_child_that_dies_leaves_each_model_to_the_test_that_needs_it(suite: Suite) -> None:
    suite.write({"conftest.py": DIES})
    run = suite.run(OVERLAP)
    assert {"passed": 5} == run.counts
    assert 1 == len(suite.ollama.loads)
    why = "the process that loads models exited with signal 9"
    assert f"{why}: each model is loaded when a test needs it" in run.ours


def test_models_come_in_the_order_in_which_they_are_needed(suite: Suite) -> None:
    for name in "cab":
        suite.ollama.add(
            replace(LLAMA, name=f"{name}:1", present=True, digest=name * 64, load_s=0.3)
        )
    suite.write(
        {
            "test_it.py": """
            import pytest

            @pytest.mark.requires_model("c:1")
            def test_c(): pass

            @pytest.mark.requires_model("a:1", "b:1")
            def test_ab(): pass
            """
        }
    )
    for how in ([OVERLAP], []):
        suite.ollama.forget()
        for name in "cab":
            suite.ollama.unload(f"{name}:1")
        assert {"passed": 2} == suite.run(*how).counts
        assert ["c:1", "a:1", "b:1"] == [one.model for one in suite.ollama.loads]


def test_the_child_does_not_take_modules_of_the_suite_for_its_own(suite: Suite) -> None:
    suite.write({"filelock.py": "raise RuntimeError('not the one')\n"})
    run = suite.run(OVERLAP)
    assert {"passed": 5} == run.counts
    assert "the process that loads models" not in run.out


def test_the_child_finds_modules_where_pytest_does(suite: Suite) -> None:
    suite.write(
        {
            "deps/sitecustomize.py": """
                import os, sys
                from pathlib import Path

                Path(__file__).with_name(f"seen-{os.getpid()}").write_text(" ".join(sys.orig_argv))
            """,
            # As Bazel's py_test and a PEX put dependencies on the path.
            "start.py": """
                import sys
                sys.path.insert(0, sys.argv[1])
                import pytest
                sys.exit(pytest.main(["-p", "ollama_warmup", *sys.argv[2:]]))
            """,
        }
    )
    deps = suite.pytester.path / "deps"
    done = subprocess.run(
        [sys.executable, "start.py", str(deps), OVERLAP],
        cwd=suite.pytester.path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "5 passed" in done.stdout, done.stdout + done.stderr
    seen = [path.read_text("utf-8") for path in deps.glob("seen-*")]
    assert any("pytest_ollama_warmup.warmup.child" in one for one in seen)
