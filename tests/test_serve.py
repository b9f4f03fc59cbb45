"""A server of the run's own: started when it is needed, and gone with the run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Result, UserSuite
from tests.test_faults import end, until, wait_for
from tests.unit.test_process import command_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
SERVE = "--ollama-serve"
# What is started: an emulator that keeps to what the environment tells the real server. It notes
# each start, and what it was told.
SERVER = """
import json, os, sys, threading
from pathlib import Path
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel

here = Path(__file__).parent
told = {name: value for name, value in os.environ.items() if name.startswith("OLLAMA_")}
with open(here / "starts", "a") as starts:
    starts.write(json.dumps(told) + "\\n")
(here / "pid").write_text(str(os.getpid()))
print("starting", flush=True)
if "exits" in sys.argv:
    sys.exit("Error: mkdir /models: read-only file system")
port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
models = [ScriptedModel(name, present=True, digest=name[0] * 64) for name in ("a:1", "b:1")]
with Emulator(models, port=port) as emulator:
    if "breaks" in sys.argv:
        print('time=... level=ERROR source=x.go:1 msg="llama runner terminated"', flush=True)
    threading.Event().wait()
"""
TEST = """
import os, time, urllib.request, json
import pytest

AT_IMPORT = os.environ.get("OLLAMA_HOST")

@pytest.mark.requires_model("a:1")
@pytest.mark.parametrize("n", range(3))
def test_it(n, ollama_host):
    assert os.environ["OLLAMA_HOST"] == AT_IMPORT == ollama_host.removeprefix("http://")
    body = {"model": "a:1", "prompt": "Hi", "stream": False}
    request = urllib.request.Request(ollama_host + "/api/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["done"]
"""

WAITS_FOR_THE_LOAD = """
    import json, os, time, urllib.request

    url = "http://" + os.environ.get("OLLAMA_HOST") + "/api/ps"
    begin = time.monotonic()
    while True:
        assert time.monotonic() - begin < 30, "nobody has asked for the load"
        try:
            if json.load(urllib.request.urlopen(url))["models"]:
                break
        except OSError:
            time.sleep(0.01)
"""


class Served(UserSuite):
    """A suite, and a program that it can start as its server."""

    @property
    def program(self) -> Path:
        """The program."""
        return self.pytester.path / "server.py"

    def flags(self, *words: str) -> list[str]:
        """Return what makes a run start it."""
        command = " ".join([f"'{sys.executable}'", f"'{self.program}'", *words])
        return [SERVE, f"--ollama-serve-command={command}"]

    def serve(self, *args: str) -> Result:
        """Run with it."""
        return self.run(*self.flags(), *args)

    @property
    def starts(self) -> list[dict[str, str]]:
        """What the server was told, each time it was started."""
        path = self.pytester.path / "starts"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def processes(self) -> list[int]:
        """The processes that belong to it: the server, and what looks after it."""
        return [pid for pid, line in command_lines().items() if str(self.program) in line]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A suite of three tests that need a model, and nobody's server around."""
    monkeypatch.setenv("OLLAMA_HOST", "")
    suite = Served(pytester)
    suite.write({"server.py": SERVER, "test_it.py": TEST})
    yield suite
    until(lambda: not suite.processes)


@WORKERS
@pytest.mark.parametrize("more", [[], ["--ollama-background"], ["--ollama-group-by-model"]])
@pytest.mark.parametrize("listed", [[], ["--ollama-preload=a:1 b:1"]], ids=["", "listed"])
def test_one_server_serves_the_run_and_goes_with_it(
    suite: Served, workers: list[str], more: list[str], listed: list[str]
) -> None:
    run = suite.serve("-v", *workers, *more, *listed)
    assert {"passed": 3} == run.counts, run.out
    assert 1 == len(suite.starts)
    assert [] == suite.processes
    url = re.match(r"(http://127\.0\.0\.1:\d+) \(--ollama-serve\)", run.ours[0])
    assert url is not None
    assert any(one.startswith(f"serving on {url[1]}, log in ") for one in run.ours)
    assert "" == run.err


def test_it_is_tuned_to_the_run(suite: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.serve("-n2", "--ollama-preload=a:1,num_ctx=2048 b:1,num_ctx=2048")
    told = suite.starts[0]
    assert "2" == told["OLLAMA_NUM_PARALLEL"]
    assert "3" == told["OLLAMA_MAX_LOADED_MODELS"]
    assert "2048" == told["OLLAMA_CONTEXT_LENGTH"]
    assert "1" == told["OLLAMA_NOPRUNE"]
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "7")
    monkeypatch.setenv("OLLAMA_MODELS", "a:1 b:1")
    suite.serve()
    assert "7" == suite.starts[1]["OLLAMA_NUM_PARALLEL"]
    assert "OLLAMA_MODELS" not in suite.starts[1]
    assert "OLLAMA_CONTEXT_LENGTH" not in suite.starts[1]


def test_a_run_that_needs_no_model_starts_none(suite: Served) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    run = suite.serve()
    assert ({"passed": 1}, [], []) == (run.counts, run.ours, suite.starts)


@pytest.mark.parametrize("look", ["--collect-only", "--setup-plan", "--fixtures"])
def test_looking_starts_none(suite: Served, look: str) -> None:
    suite.serve(look, "--ollama-preload=a:1")
    assert [] == suite.starts


def test_off_starts_none(suite: Served) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    suite.serve("--ollama-off", "--ollama-preload=a:1")
    assert [] == suite.starts


@WORKERS
def test_it_can_stand_in_the_configuration_file(suite: Served, workers: list[str]) -> None:
    suite.write(
        {
            "pytest.ini": f"""
            [pytest]
            ollama_serve = true
            ollama_serve_command = '{sys.executable}' '{suite.program}'
            """,
            "test_it.py": TEST.replace("(n, ollama_host)", "(n, ollama_host, pytestconfig)")
            + """
    from pytest_ollama_warmup.session.state import settings_of
    settings = settings_of(pytestconfig)
    assert "ollama_serve in pytest.ini" == settings.host.source == settings.serve.source
    assert settings.serve.value
""",
        }
    )
    run = suite.run("-v", *workers)
    assert {"passed": 3} == run.counts
    assert "(ollama_serve in pytest.ini)" in run.ours[0]


# Which server


def test_with_another_server_on_the_command_line_it_is_an_error(suite: Served) -> None:
    run = suite.serve("--ollama-host=gpu-box")
    assert 4 == run.ret
    assert (
        "--ollama-serve starts a server of its own, and cannot go with --ollama-host. "
        "Leave one of them out."
    ) in run.err


def test_it_goes_before_the_servers_of_the_environment_and_of_the_file(
    suite: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:bad")
    suite.write({"pytest.ini": "[pytest]\nollama_host = gpu-box\n"})
    assert {"passed": 3} == suite.serve().counts


def test_in_the_file_it_comes_after_the_server_of_the_environment(
    suite: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write({"pytest.ini": "[pytest]\nollama_serve = true\n"})
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    run = suite.run("--ollama-wait=0")
    assert ({"skipped": 3}, []) == (run.counts, suite.starts)
    assert "http://127.0.0.1:9 (from OLLAMA_HOST)" in run.ours[0]


def test_both_in_the_file_are_an_error(suite: Served) -> None:
    suite.write({"pytest.ini": "[pytest]\nollama_serve = true\nollama_host = gpu-box\n"})
    run = suite.run()
    assert 4 == run.ret
    assert "ollama_serve in pytest.ini starts a server of its own" in run.err


def test_a_hook_of_the_suite_is_not_asked_beside_it(suite: Served) -> None:
    suite.write({"conftest.py": "def pytest_ollama_host(config): raise AssertionError\n"})
    assert {"passed": 3} == suite.serve().counts


# Faults


def test_a_missing_program_is_told_with_where_it_was_looked_for(suite: Served) -> None:
    run = suite.run(SERVE, "--ollama-serve-command=/nowhere/ollama serve", "-rs")
    assert {"skipped": 3} == run.counts
    assert any(
        "/nowhere/ollama is not there. Looked at: /nowhere/ollama. [ollama-not-found]" in one
        for one in run.ours
    )
    assert "--ollama-serve-command 'PATH serve'" in run.out
    assert "Traceback" not in run.out


@pytest.mark.parametrize("command", ["", "'ollama serve"])
def test_a_command_that_cannot_be_read_is_told(suite: Served, command: str) -> None:
    run = suite.run(SERVE, f"--ollama-serve-command={command}")
    assert {"skipped": 3} == run.counts
    assert "is not a valid --ollama-serve-command" in run.out


@WORKERS
def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(
    suite: Served, workers: list[str]
) -> None:
    run = suite.run(*suite.flags("exits"), *workers, "--ollama-preload=a:1")
    assert 2 == run.ret
    assert "\n  Error: mkdir /models: read-only file system\n" in run.err
    assert 1 == len(suite.starts)


def test_a_port_that_was_taken_meanwhile_is_told(suite: Served) -> None:
    suite.write(
        {
            "conftest.py": """
            import os, socket

            taken = socket.create_server(
                ("127.0.0.1", int(os.environ["OLLAMA_HOST"].rpartition(":")[2]))
            )
            """
        }
    )
    run = suite.serve("-rs")
    assert ({"skipped": 3}, []) == (run.counts, suite.starts)
    assert re.search(r"port \d+ is taken", run.out)


def test_after_failed_tests_the_summary_names_the_log_and_its_errors(suite: Served) -> None:
    suite.write({"test_more.py": "def test_fails(): assert False\n"})
    run = suite.run(*suite.flags("breaks"))
    assert {"passed": 3, "failed": 1} == run.counts
    log = re.search(
        r"^log of the server: (.*), which says of errors:\n  (.*)$", run.out, re.MULTILINE
    )
    assert log is not None
    assert "level=ERROR" in log[2]
    assert "starting" in Path(log[1]).read_text("utf-8")


def test_where_nothing_failed_it_says_nothing_of_the_log(suite: Served) -> None:
    assert "log of the server" not in suite.run(*suite.flags("breaks")).out


def test_the_log_lies_elsewhere_where_pytest_keeps_nothing(suite: Served) -> None:
    run = suite.serve("-p", "no:cacheprovider")
    log = next(one.rpartition("log in ")[2] for one in run.ours if "log in" in one)
    assert "starting" in Path(log).read_text("utf-8")
    Path(log).unlink()
    Path(log).parent.rmdir()


def test_a_server_that_ends_in_mid_run_is_not_waited_for(suite: Served) -> None:
    suite.write(
        {
            "test_it.py": TEST
            + """
    import pathlib, signal
    os.kill(int(pathlib.Path(__file__).with_name("pid").read_text()), signal.SIGKILL)
"""
        }
    )
    run = suite.serve()
    assert {"passed": 1, "failed": 2} == run.counts
    assert "It has ended; its log, named at the end of the run, says why." in run.out
    assert "log of the server: " in run.out
    assert re.search(
        r"^! lost before test_it\.py::test_it\[1\] and 1 more: no Ollama at ", run.out, re.M
    )


# The end

STAYS = TEST + "    print('GO', flush=True)\n    time.sleep(60)\n"


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_run_however_that_ends(
    suite: Served, workers: list[str], number: signal.Signals
) -> None:
    suite.write({"test_it.py": STAYS})
    process = suite.start(*suite.flags(), "-s", "-v", *workers)
    wait_for(process, "a:1 loaded in" if workers else "GO")
    assert suite.processes
    process.send_signal(number)
    if number == signal.SIGINT:
        assert 2 == end(process)[0]
    until(lambda: not suite.processes)
    process.kill()
    process.communicate()


@WORKERS
def test_it_ends_with_a_run_that_stops_at_the_first_failure(
    suite: Served, workers: list[str]
) -> None:
    suite.write({"test_it.py": TEST + "    assert False\n"})
    run = suite.serve("-x", *workers)
    assert run.counts["failed"] >= 1
    assert [] == suite.processes


def test_it_ends_with_a_test_that_ends_the_process(suite: Served) -> None:
    suite.write({"test_it.py": TEST + "    os._exit(7)\n"})
    assert 7 == suite.serve().ret
    until(lambda: not suite.processes)


def test_it_survives_a_worker_that_crashes(suite: Served) -> None:
    suite.write({"test_it.py": TEST + "    if n == 0: os._exit(7)\n"})
    run = suite.serve("-n2")
    assert {"passed": 2, "failed": 1} == run.counts
    assert 1 == len(suite.starts)


# Beside it


def test_slots_are_those_of_the_server(suite: Served) -> None:
    suite.write(
        {
            "test_it.py": TEST
            + """
def test_slots(pytestconfig):
    from pytest_ollama_warmup.session.state import settings_of
    assert 2 == settings_of(pytestconfig).max_parallel.value
"""
        }
    )
    assert {"passed": 4} == suite.serve("-n2").counts


def test_what_is_learned_is_kept_whatever_the_port(suite: Served) -> None:
    suite.write(
        {
            "test_it.py": TEST.replace(
                '"stream": False', '"stream": False, "options": {"num_ctx": 8192}'
            )
        }
    )
    suite.serve()
    assert any("num_ctx 8192, learned" in one for one in suite.serve().ours)


def test_a_run_in_a_test_uses_the_server_of_the_run(suite: Served) -> None:
    suite.write(
        {
            "test_outer.py": """
            import subprocess, sys

            def test_outer():
                command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", *FLAGS, "test_it.py"]
                done = subprocess.run(command, capture_output=True, text=True)
                assert "3 passed" in done.stdout, done.stdout
            """.replace("FLAGS", repr(suite.flags()))
        }
    )
    assert {"passed": 4} == suite.serve("test_it.py", "test_outer.py").counts
    assert 1 == len(suite.starts)


def test_it_is_gone_when_pytest_is_over_and_the_process_is_not(suite: Served) -> None:
    suite.write(
        {
            "runs.py": f"""
            import pytest

            assert 0 == pytest.main(["-p", "ollama_warmup", *{suite.flags()!r}])
            print("OVER", flush=True)
            input()
            """
        }
    )
    process = subprocess.Popen(
        [sys.executable, "runs.py"],
        cwd=suite.pytester.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        wait_for(process, "OVER")
        mine = set(suite.processes) - {process.pid}
        assert set() == mine
    finally:
        process.communicate("")


def test_it_is_started_and_asked_while_conftests_are_imported(suite: Served) -> None:
    suite.write({"conftest.py": WAITS_FOR_THE_LOAD})
    run = suite.serve("--ollama-preload=a:1", "-v")
    assert {"passed": 3} == run.counts
    assert "loaded in" in run.table[0]
    assert 1 == len(suite.starts)


@pytest.mark.parametrize("args", [["-n3"], ["-nauto", "--maxprocesses=3"]], ids=["n3", "auto"])
def test_one_that_is_started_early_knows_of_the_workers(suite: Served, args: list[str]) -> None:
    run = suite.serve("--ollama-preload=a:1", *args)
    assert {"passed": 3} == run.counts
    slots = str(min(os.cpu_count() or 1, 3)) if "auto" in args[0] else "3"
    assert [slots] == [one["OLLAMA_NUM_PARALLEL"] for one in suite.starts]


def test_one_that_is_started_early_ends_with_a_conftest_that_fails(suite: Served) -> None:
    suite.write({"conftest.py": WAITS_FOR_THE_LOAD + "    raise RuntimeError\n"})
    run = suite.serve("--ollama-preload=a:1")
    assert (4, 1) == (run.ret, len(suite.starts))
    assert "ollama:" not in run.out
    until(lambda: not suite.processes)
