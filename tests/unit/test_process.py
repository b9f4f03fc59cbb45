"""A server of our own: found, tuned, started, told apart from others, and gone with its run."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.errors import (
    Aborted,
    BadSetting,
    OllamaNotFound,
    ServerStartFailed,
)
from pytest_ollama_warmup.ollama import process as process_module
from pytest_ollama_warmup.ollama import supervisor
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.process import (
    ManagedServer,
    find_binary,
    free_port,
    is_folder,
    tuned,
)
from tests.forked import hearing_signals
from tests.test_faults import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT_S = 30.0
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups")

# What --ollama-serve could start. Its own path stands in the command line of all that belong to it,
# and so they can be counted.
FAKE = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path

modes = sys.argv[1].split("+")
here = Path(__file__).parent
if modes == ["sleep"]:
    time.sleep(600)
if modes == ["stays"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    time.sleep(600)
if modes == ["brief"]:
    time.sleep(0.2)
    sys.exit()
if "parent" in modes:
    # Whose children lose it.
    child = subprocess.Popen([sys.executable, __file__, modes[1]], start_new_session=True)
    (here / "orphan.pid").write_text(str(child.pid))
    sys.exit()
if "deaf" in modes:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "children" in modes:
    for _ in range(2):
        subprocess.Popen([sys.executable, __file__, "sleep"])
if "escapes" in modes:
    subprocess.Popen([sys.executable, __file__, "stays"], start_new_session=True)
if "daemon" in modes:
    subprocess.run([sys.executable, __file__, "parent+stays"])
if "orphan" in modes:
    subprocess.run([sys.executable, __file__, "parent+brief"])
(here / "server.pid").write_text(str(os.getpid()))
if "reads" in modes:
    print("read:", sys.stdin.read(), flush=True)
if "floods" in modes:
    line = "x" * 99 + "\\n"
    print("Error: long ago\\n" + line * 500_000, "Error: disk full\\n", line * 10_000, end="", flush=True)
if "noise" in modes:
    sys.stdout.buffer.write(b"\\xff\\xfe\\x1b[31mred\\x07\\n\\n" + b"x" * 5000 + b"\\n")
    sys.stdout.flush()
if "exits" in modes:
    print("Error: mkdir /models: read-only file system", file=sys.stderr)
    sys.exit(3)
if "loses-port" in modes:
    print("Error: listen tcp 127.0.0.1:1: bind: address already in use", file=sys.stderr)
    sys.exit(1)
host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
listener = socket.create_server((host, int(port)))
print("level=INFO msg=Listening", flush=True)
body = b'{"version":"0.33.0"}'
head = "HTTP/1.1 200 OK\\r\\nContent-Type: %s\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n"
if "denies" in modes:
    answer = b"HTTP/1.1 401 Unauthorized\\r\\nContent-Length: 0\\r\\n\\r\\n"
elif "html" in modes:
    answer = (head % ("text/html", 27)).encode() + b"<title>Wiki start</title>\\r\\n"
elif "garbage" in modes:
    answer = b"\\x00\\x01 220 mail ready\\r\\n"
else:
    answer = (head % ("application/json", len(body))).encode() + body
while True:
    connection, _ = listener.accept()
    if "hangs" in modes:
        time.sleep(600)
    with connection:
        connection.recv(65536)
        connection.sendall(answer)
"""

# A run that starts one, in a process of its own that can be killed.
RUN = """
import os, sys
from pathlib import Path
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.process import ManagedServer, free_port, tuned

env = tuned(os.environ, workers=1, models=1, context_length=None, port=free_port())
server = ManagedServer(sys.argv[2:], env, Path(sys.argv[1]))
server.start()
server.wait_until_ready(Client(server.host), 30)
def say(text): print(text, flush=True)
def version(): return Client(server.host).version()
"""
END_AS_TOLD = """
say("ready")
how = sys.stdin.readline().strip()
if how == "os._exit": os._exit(3)
if how == "exception": raise RuntimeError
"""


class Fakes:
    """Fake servers with a folder of their own; nothing of them outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "fake.py"
        self.script.write_text(FAKE, "utf-8")
        self.log = folder / "serve.log"
        self._servers: list[ManagedServer] = []
        self._runs: list[subprocess.Popen[str]] = []

    def command(self, modes: str) -> list[str]:
        return [sys.executable, str(self.script), modes]

    def new(self, modes: str, port: int | None = None) -> ManagedServer:
        port = port or free_port()
        env = tuned(os.environ, workers=1, models=1, context_length=None, port=port)
        self._servers.append(ManagedServer(self.command(modes), env, self.log))
        return self._servers[-1]

    def ready(self, modes: str) -> ManagedServer:
        server = self.new(modes)
        server.start()
        wait_until_ready(server)
        return server

    def failed(self, modes: str, limit_s: float = LIMIT_S) -> ServerStartFailed:
        server = self.new(modes)
        server.start()
        with pytest.raises(ServerStartFailed) as caught:
            wait_until_ready(server, limit_s)
        return caught.value

    def run(self, modes: str, program: str = END_AS_TOLD) -> subprocess.Popen[str]:
        """Start a run with a server, as a process with a session of its own."""
        with hearing_signals():
            run = subprocess.Popen(
                [sys.executable, "-c", RUN + program, str(self.log), *self.command(modes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        self._runs.append(run)
        return run

    def server_pid(self) -> int:
        return int((self.folder / "server.pid").read_text("utf-8"))

    def processes(self) -> dict[int, str]:
        """Return the command lines of all that run here: runs, supervisors, servers, children."""
        return {pid: line for pid, line in command_lines().items() if str(self.script) in line}

    def supervisor_pid(self) -> int:
        (pid,) = [pid for pid, line in self.processes().items() if "supervisor.py" in line]
        return pid

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
        for run in self._runs:
            run.kill()
        # Forks of a run, which hold its output open, and what a broken stop() has left.
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        for run in self._runs:
            run.communicate()


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    fakes = Fakes(tmp_path)
    yield fakes
    fakes.stop()


def command_lines() -> dict[int, str]:
    """Return the command lines of all processes by id; a zombie has none."""
    found = {}
    if Path("/proc/self/cmdline").exists():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found[int(path.parent.name)] = path.read_text("utf-8", "replace")
        return found
    ps = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    for line in ps.stdout.splitlines():
        pid, _, rest = line.strip().partition(" ")
        found[int(pid)] = rest
    return found


def wait_until_ready(server: ManagedServer, limit_s: float = LIMIT_S) -> str:
    client = Client(server.host)
    try:
        return server.wait_until_ready(client, limit_s)
    finally:
        client.close()


def answers(server: ManagedServer) -> bool:
    client = Client(server.host)
    try:
        return "0.33.0" == client.version()
    finally:
        client.close()


def line_of(run: subprocess.Popen[str]) -> str:
    assert run.stdout is not None
    return run.stdout.readline().strip()


def tell(run: subprocess.Popen[str], text: str) -> None:
    assert run.stdin is not None
    run.stdin.write(f"{text}\n")
    run.stdin.flush()


# --- found


def program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", "utf-8")
    path.chmod(mode)
    return str(path)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No Ollama in the usual places of this machine; the place that stands for them."""
    place = tmp_path / "usual" / "ollama"
    monkeypatch.setattr(process_module, "_PLACES", (str(place),))
    return place


@POSIX
def test_a_program_is_taken_from_path_first(tmp_path: Path, nowhere: Path) -> None:
    program(nowhere)
    on_path = program(tmp_path / "bin" / "ollama")
    environ = {"PATH": f"{tmp_path / 'empty'}{os.pathsep}{tmp_path / 'bin'}"}
    assert [on_path, "serve"] == find_binary("ollama serve", environ)


@POSIX
def test_ollama_is_found_where_its_installers_put_it(tmp_path: Path, nowhere: Path) -> None:
    local = program(tmp_path / "Programs" / "Ollama" / "ollama.exe")
    environ = {"LOCALAPPDATA": str(tmp_path)}
    assert [local, "serve"] == find_binary("ollama serve", environ)
    usual = program(nowhere)
    assert [usual, "serve"] == find_binary("ollama serve", environ)
    assert [usual, "serve"] == find_binary("ollama serve", {"PATH": str(tmp_path)})


@POSIX
def test_another_program_is_not_looked_for_where_ollama_is_put(
    tmp_path: Path, nowhere: Path
) -> None:
    program(nowhere)
    with pytest.raises(OllamaNotFound) as caught:
        find_binary("olama serve", {"PATH": str(tmp_path)})
    assert ("PATH",) == caught.value.looked


@POSIX
def test_a_path_is_made_absolute_and_keeps_its_spaces_and_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "my tools" / "ollama")
    assert [path, "serve", "a b"] == find_binary(f"'{path}' serve 'a b'", {})
    monkeypatch.chdir(tmp_path)
    assert [path] == find_binary("'my tools/ollama'", {})
    assert [path] == find_binary("ollama", {"PATH": "my tools"})


@POSIX
def test_a_missing_program_is_said_with_all_places_and_the_ways_to_get_it(
    tmp_path: Path, nowhere: Path
) -> None:
    program(tmp_path / "bin" / "ollama", 0o644)
    environ = {"PATH": str(tmp_path / "bin"), "LOCALAPPDATA": str(tmp_path)}
    with pytest.raises(OllamaNotFound) as caught:
        find_binary("ollama serve", environ)
    local = str(tmp_path / "Programs" / "Ollama" / "ollama.exe")
    assert ("PATH", str(nowhere), local) == caught.value.looked
    assert f"Looked at: PATH, {nowhere}, {local}." in str(caught.value)
    for way in ("ollama.com/download", "brew", "winget", "--ollama-serve-command", "--ollama-host"):
        assert way in str(caught.value)


def test_the_places_are_those_of_the_installers() -> None:
    app = "/Applications/Ollama.app/Contents/Resources/ollama"
    assert ("/usr/local/bin/ollama", app) == process_module._PLACES


def test_a_missing_path_is_said_as_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OllamaNotFound) as caught:
        find_binary(f"{Path('tools', 'ollama')} serve", {"PATH": str(tmp_path)})
    assert (str(tmp_path / "tools" / "ollama"),) == caught.value.looked


@pytest.mark.parametrize("command", ["", "  ", "'/opt/ollama serve"])
def test_a_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(BadSetting, match=r"--ollama-serve-command.*such as 'ollama serve'"):
        find_binary(command, {})


# --- tuned


def own(environ: dict[str, str], *, workers: int = 1, models: int = 1) -> dict[str, str]:
    return tuned(environ, workers=workers, models=models, context_length=None, port=20001)


@pytest.mark.parametrize(("workers", "slots"), [(0, "1"), (1, "1"), (3, "3"), (4, "4"), (16, "4")])
def test_the_server_has_a_slot_for_each_worker_up_to_four(workers: int, slots: str) -> None:
    assert slots == own({}, workers=workers)["OLLAMA_NUM_PARALLEL"]


@pytest.mark.parametrize(("models", "loaded"), [(0, "3"), (3, "3"), (5, "5")])
def test_the_server_holds_all_models_and_at_least_three(models: int, loaded: str) -> None:
    assert loaded == own({}, models=models)["OLLAMA_MAX_LOADED_MODELS"]


def test_the_server_has_the_context_that_all_specs_agree_on() -> None:
    env = tuned({}, workers=1, models=1, context_length=8192, port=20001)
    assert "8192" == env["OLLAMA_CONTEXT_LENGTH"]
    assert "OLLAMA_CONTEXT_LENGTH" not in own({})


def test_the_server_leaves_the_downloads_of_another_one_alone() -> None:
    assert "1" == own({})["OLLAMA_NOPRUNE"]


def test_what_the_user_set_wins_and_what_is_empty_is_not_set() -> None:
    names = (
        "OLLAMA_NUM_PARALLEL",
        "OLLAMA_MAX_LOADED_MODELS",
        "OLLAMA_NOPRUNE",
        "OLLAMA_CONTEXT_LENGTH",
    )
    given = dict.fromkeys(names, "0")
    env = tuned(given, workers=4, models=4, context_length=8192, port=20001)
    assert given == {name: env[name] for name in names}
    env = tuned(dict.fromkeys(names, ' "" '), workers=4, models=4, context_length=8192, port=1)
    assert ["4", "4", "1", "8192"] == [env[name] for name in names]


def test_the_server_listens_on_the_port_of_the_run_and_on_loopback_only() -> None:
    assert "127.0.0.1:20001" == own({"OLLAMA_HOST": "0.0.0.0:80"})["OLLAMA_HOST"]


def test_all_other_variables_reach_the_server_and_the_callers_stay() -> None:
    environ = {"PATH": "/bin", "HTTPS_PROXY": "http://p:1", "OLLAMA_DEBUG": "1"}
    env = own(environ)
    assert environ.items() <= env.items()
    assert {"PATH", "HTTPS_PROXY", "OLLAMA_DEBUG"} == set(environ)


@pytest.mark.parametrize(
    "value", ["/data", "~/models", "./m", "../m", " '/data' ", r"C:\models", "C:/m", r"\\nas\m"]
)
def test_a_models_directory_reaches_the_server(value: str) -> None:
    assert is_folder(value)
    assert value == own({"OLLAMA_MODELS": value})["OLLAMA_MODELS"]


@pytest.mark.parametrize(
    "value",
    ["llama3.2:1b", "llama3.2:1b,nomic-embed-text", "hf.co/a/b:Q4_0", "all-minilm", "", " "],
)
def test_a_list_of_models_does_not_reach_the_server(value: str) -> None:
    assert not is_folder(value)
    assert "OLLAMA_MODELS" not in own({"OLLAMA_MODELS": value})


# --- port


def test_a_free_port_is_one_that_nobody_gets_by_chance() -> None:
    for _ in range(20):
        port = free_port()
        assert 20000 <= port < 30000
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        choices = iter([taken - 20000, 1])
        monkeypatch.setattr(secrets, "randbelow", lambda limit: next(choices))
        assert taken != free_port()


def test_where_all_of_those_are_taken_any_port_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_is_free", lambda port: False)
    assert 0 < free_port() < 65536


def test_runs_that_are_seeded_alike_take_different_ports() -> None:
    ports = set()
    for _ in range(8):
        random.seed(1)
        ports.add(free_port())
    assert 1 < len(ports)


# --- started


def test_a_server_that_answers_is_ready_and_tells_its_version(fakes: Fakes) -> None:
    server = fakes.new("serve")
    assert "not started" == server.ended
    server.start()
    assert "0.33.0" == wait_until_ready(server)
    assert "" == server.ended
    assert re.fullmatch(r"http://127\.0\.0\.1:2\d{4}", server.host.url)
    assert "--ollama-serve" == server.host.source
    until(lambda: ["level=INFO msg=Listening"] == server.log_tail(5))


def test_a_server_is_one_for_a_with_statement(fakes: Fakes) -> None:
    with fakes.new("serve") as server:
        wait_until_ready(server)
    assert {} == fakes.processes()


def test_a_server_that_exits_at_once_is_told_with_its_words(fakes: Fakes) -> None:
    # Long before the time is over, or this test would never end.
    error = fakes.failed("exits", limit_s=86400)
    assert "exit code 3" == error.words
    assert ("Error: mkdir /models: read-only file system",) == error.lines
    assert str(error).startswith(f"the server at {error.url} (from --ollama-serve) did not start: ")
    assert f"The end of {fakes.log}:\n  Error: mkdir /models" in error.message
    assert "--ollama-host URL" in str(error)
    assert "start failed" == error.cause
    assert {} == fakes.processes()


def test_a_server_that_never_answers_is_given_up_and_ended(fakes: Fakes) -> None:
    error = fakes.failed("children+hangs", limit_s=2.0)
    assert re.fullmatch(r"(no answer|connection refused) for 2 s", error.words)
    until(lambda: not fakes.processes())


@pytest.mark.parametrize(
    ("modes", "seen"), [("html", '200 text/html "Wiki start"'), ("garbage", "no HTTP: ")]
)
def test_what_answers_as_something_else_is_described(fakes: Fakes, modes: str, seen: str) -> None:
    error = fakes.failed(modes)
    assert f"what answers is not Ollama (GET /api/version: {seen}" in error.words
    assert {} == fakes.processes()


def test_what_refuses_access_is_described(fakes: Fakes) -> None:
    assert "access refused: HTTP 401" == fakes.failed("denies").words


def test_an_answer_while_the_server_ended_was_somebody_elses(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fakes.new("loses-port")
    server.start()
    client = Client(server.host)

    def answered(*_: object) -> str:
        until(lambda: server.ended)
        return "0.33.0"

    monkeypatch.setattr(client, "wait_until_ready", answered)
    with pytest.raises(ServerStartFailed, match="exit code 1") as caught:
        server.wait_until_ready(client, LIMIT_S)
    client.close()
    assert "port taken" == caught.value.cause


def test_garbage_in_the_log_cannot_repaint_a_terminal(fakes: Fakes) -> None:
    error = fakes.failed("noise+exits")
    assert "\ufffd\ufffdred" == error.lines[0]
    assert 300 == len(error.lines[1])
    assert "Error: mkdir" in error.lines[2]


def test_a_program_that_cannot_be_run_is_told(fakes: Fakes, tmp_path: Path) -> None:
    env = own({**os.environ})
    server = ManagedServer([str(tmp_path), "serve"], env, fakes.log)
    server.start()
    with pytest.raises(ServerStartFailed, match=r"exit code 126") as caught:
        wait_until_ready(server)
    (line,) = caught.value.lines
    assert re.fullmatch(rf"{re.escape(str(tmp_path))} cannot be run: .+", line)


def test_a_wait_that_is_cut_short_is_no_failure_of_the_server(fakes: Fakes) -> None:
    server = fakes.new("serve")
    server.start()
    client = Client(server.host)
    client.abort()
    with pytest.raises(Aborted):
        server.wait_until_ready(client, LIMIT_S)
    client.close()


def test_each_attempt_is_told_to_the_one_who_waits(fakes: Fakes) -> None:
    server = fakes.new("hangs")
    server.start()
    client = Client(server.host)
    seen: list[str] = []
    with pytest.raises(ServerStartFailed):
        server.wait_until_ready(client, 1.0, lambda cause, waited_s: seen.append(cause))
    client.close()
    assert seen


def test_a_server_that_reads_its_input_gets_none(fakes: Fakes) -> None:
    server = fakes.ready("reads")
    until(lambda: ["read:", "level=INFO msg=Listening"] == server.log_tail(2))


# --- port taken


def test_a_port_that_was_taken_since_is_told_before_anything_starts(fakes: Fakes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = fakes.new("serve", port=other.getsockname()[1])
        said = r"port \d+ is taken[.] \[port-taken\]\nRun again: each run takes another port"
        with pytest.raises(ServerStartFailed, match=said):
            server.start()
    assert {} == fakes.processes()
    assert not fakes.log.exists()
    server.stop()


def test_a_port_that_is_taken_while_the_server_starts_is_told_too(fakes: Fakes) -> None:
    error = fakes.failed("loses-port")
    assert "port taken" == error.cause
    assert "address already in use" in str(error)


def test_another_service_that_answers_in_its_place_is_not_taken_for_it(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fakes.new("html")
    other.start()
    until(lambda: bool(other.log_tail(1)))
    monkeypatch.setattr(process_module, "_is_free", lambda port: True)
    monkeypatch.setattr(process_module, "_LAST_WORDS_S", LIMIT_S)
    server = fakes.new("loses-port", port=int(other.host.url.rpartition(":")[2]))
    server.start()
    with pytest.raises(ServerStartFailed) as caught:
        wait_until_ready(server)
    assert ("port taken", "exit code 1") == (caught.value.cause, caught.value.words)


def test_connections_that_were_closed_do_not_take_the_port(fakes: Fakes) -> None:
    first = fakes.ready("serve")
    assert answers(first)
    first.stop()
    again = fakes.new("serve", port=int(first.host.url.rpartition(":")[2]))
    again.start()
    assert "0.33.0" == wait_until_ready(again)


# --- gone


@POSIX
def test_a_server_is_stopped_with_its_children(fakes: Fakes) -> None:
    server = fakes.ready("children")
    assert 4 == len(fakes.processes())
    server.stop()
    until(lambda: not fakes.processes())
    assert "ended by SIGTERM" == server.ended


def test_a_server_can_be_stopped_again_and_before_it_was_started(fakes: Fakes) -> None:
    server = fakes.new("serve")
    server.stop()
    server.start()
    server.stop()
    server.stop()
    assert {} == fakes.processes()


@POSIX
def test_a_server_that_does_not_care_for_sigterm_is_killed(fakes: Fakes) -> None:
    server = fakes.ready("children+deaf")
    server.stop()
    until(lambda: not fakes.processes())
    assert "ended by SIGKILL" == server.ended


@POSIX
@pytest.mark.parametrize("how", ["end", "exception", "os._exit"])
def test_the_server_goes_with_its_run_however_that_ends(fakes: Fakes, how: str) -> None:
    run = fakes.run("children")
    assert "ready" == line_of(run)
    assert 5 == len(fakes.processes())
    tell(run, how)
    run.wait(LIMIT_S)
    until(lambda: not fakes.processes())


@POSIX
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGABRT"])
def test_the_server_goes_with_a_run_that_a_signal_ends(fakes: Fakes, name: str) -> None:
    run = fakes.run("children")
    assert "ready" == line_of(run)
    # To the whole group, as a terminal does it.
    os.killpg(run.pid, getattr(signal, name))
    run.wait(LIMIT_S)
    until(lambda: not fakes.processes())


@POSIX
def test_a_run_that_is_killed_while_its_server_starts_leaves_nothing(fakes: Fakes) -> None:
    run = fakes.run("children+hangs")
    until(lambda: any("supervisor.py" in line for line in fakes.processes().values()))
    run.kill()
    run.wait(LIMIT_S)
    until(lambda: not fakes.processes())


SUPERVISOR = [sys.executable, "-m", "pytest_ollama_warmup.ollama.supervisor"]


@POSIX
@pytest.mark.parametrize(
    ("modes", "how", "code"),
    [
        ("sleep", "closes", 128 + signal.SIGTERM),
        ("sleep", "signals", 128 + signal.SIGTERM),
        ("exits", "waits", 3),
        (None, "waits", 126),
    ],
)
def test_a_supervisor_ends_as_its_server_does(
    fakes: Fakes, modes: str | None, how: str, code: int
) -> None:
    command = fakes.command(modes) if modes else [str(fakes.folder)]
    with subprocess.Popen(
        [*SUPERVISOR, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as supervisor:
        assert supervisor.stdin is not None
        assert (modes is not None) == line_of(supervisor).isdigit()
        if how == "closes":
            supervisor.stdin.close()
        if how == "signals":
            supervisor.terminate()
        assert code == supervisor.wait(LIMIT_S)
    assert {} == fakes.processes()


@POSIX
def test_a_supervisor_whose_run_has_gone_before_it_could_say_a_word_ends(fakes: Fakes) -> None:
    gone, told = os.pipe()
    os.close(gone)
    command = [*SUPERVISOR, *fakes.command("sleep")]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.PIPE, timeout=LIMIT_S
        )
    finally:
        os.close(told)
    assert (128 + signal.SIGTERM, b"") == (done.returncode, done.stderr)
    assert {} == fakes.processes()


@POSIX
def test_no_signal_of_the_terminal_reaches_server_or_supervisor(fakes: Fakes) -> None:
    fakes.ready("children")
    ours = fakes.processes()
    sessions = {os.getsid(pid) for pid in ours}
    assert {fakes.supervisor_pid()} == sessions
    assert os.getsid(0) not in sessions
    # Nor does one for the server's group end the supervisor, which has to see to the rest.
    assert fakes.supervisor_pid() != os.getpgid(fakes.server_pid())


@POSIX
def test_a_fork_that_outlives_its_run_does_not_keep_the_server(fakes: Fakes) -> None:
    run = fakes.run(
        "children",
        """
import time
if (pid := os.fork()) == 0:
    time.sleep(600)
say(pid)
sys.stdin.readline()
""",
    )
    fork = int(line_of(run))
    run.kill()
    run.wait(LIMIT_S)
    until(lambda: {fork} == set(fakes.processes()))


@POSIX
def test_a_fork_that_holds_the_pipe_does_not_keep_stop_waiting(fakes: Fakes) -> None:
    run = fakes.run(
        "children",
        """
import time
if (pid := os.fork()) == 0:
    time.sleep(600)
server.stop()
say(server.ended)
say(pid)
sys.stdin.readline()
""",
    )
    assert "ended by SIGTERM" == line_of(run)
    fork = int(line_of(run))
    until(lambda: {fork, run.pid} == set(fakes.processes()))


@POSIX
def test_a_fork_does_not_stop_the_server_of_its_parent(fakes: Fakes) -> None:
    run = fakes.run(
        "serve",
        """
if (pid := os.fork()) == 0:
    server.stop()
    os._exit(0)
os.waitpid(pid, 0)
server._supervisor.poll()
say(version())
sys.stdin.readline()
""",
    )
    assert "0.33.0" == line_of(run)
    assert 3 == len(fakes.processes())


@POSIX
def test_a_server_that_dies_takes_its_children_and_its_supervisor_along(fakes: Fakes) -> None:
    server = fakes.ready("children")
    os.kill(fakes.server_pid(), signal.SIGKILL)
    until(lambda: "" != server.ended)
    assert "ended by SIGKILL" == server.ended
    until(lambda: not fakes.processes())
    server.stop()


@POSIX
def test_a_supervisor_that_is_told_to_end_ends_its_server_first(fakes: Fakes) -> None:
    server = fakes.ready("children")
    os.kill(fakes.supervisor_pid(), signal.SIGTERM)
    until(lambda: server.ended)
    assert "ended by SIGTERM" == server.ended
    until(lambda: not fakes.processes())


@POSIX
@pytest.mark.parametrize("noticed", [True, False])
def test_a_supervisor_that_is_killed_leaves_nothing_behind(fakes: Fakes, noticed: bool) -> None:
    server = fakes.ready("children")
    os.kill(fakes.supervisor_pid(), signal.SIGKILL)
    if noticed:
        until(lambda: "its supervisor was ended by SIGKILL" == server.ended)
    else:
        server.stop()
    until(lambda: not fakes.processes())


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")


@LINUX
@pytest.mark.parametrize("modes", ["escapes", "daemon", "escapes+daemon+deaf"])
@pytest.mark.parametrize("how", ["stop", "server dies", "supervisor is asked"])
def test_children_in_a_session_of_their_own_end_with_the_server(
    fakes: Fakes, modes: str, how: str
) -> None:
    server = fakes.ready(modes)
    assert 2 + modes.count("escapes") + modes.count("daemon") == len(fakes.processes())
    if how == "stop":
        server.stop()
        assert {} == fakes.processes()
    elif how == "server dies":
        os.kill(fakes.server_pid(), signal.SIGKILL)
    else:
        os.kill(fakes.supervisor_pid(), signal.SIGTERM)
    until(lambda: not fakes.processes())


@LINUX
def test_children_in_a_session_of_their_own_end_with_a_run_that_is_killed(fakes: Fakes) -> None:
    run = fakes.run("escapes+daemon")
    assert "ready" == line_of(run)
    assert 5 == len(fakes.processes())
    run.kill()
    run.wait(LIMIT_S)
    until(lambda: not fakes.processes())


@LINUX
def test_an_orphan_that_ends_while_the_server_runs_leaves_no_zombie(fakes: Fakes) -> None:
    server = fakes.ready("orphan")
    orphan = (fakes.folder / "orphan.pid").read_text("utf-8")
    until(lambda: not Path("/proc", orphan).exists())
    assert "" == server.ended


@POSIX
def test_a_supervisor_that_hangs_is_given_up(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_STOP_LIMIT_S", 0.1)
    server = fakes.ready("children")
    os.kill(fakes.supervisor_pid(), signal.SIGSTOP)
    server.stop()
    until(lambda: not fakes.processes())


# --- log


OLLAMA_LOG = [
    'time=2026-11-27T15:22:23.794Z level=INFO source=routes.go:1951 msg="server config" env="map[]"',
    'time=2026-11-27T15:22:23.797Z level=WARN source=m.go:168 msg="refresh failed" error="no such host"',
    "[GIN-debug] [WARNING] Running in debug mode, an error of nobody",
    '[GIN] 2026/11/27 - 15:22:24 | 200 |      40.1µs |       127.0.0.1 | GET      "/api/version"',
    '[GIN] 2026/11/27 - 15:22:25 | 500 |   1.2s |       127.0.0.1 | POST     "/api/generate"',
    "llama_model_load: error loading model: missing tensor 'blk.0'",
    'time=2026-11-27T15:22:26.000Z level=ERROR source=sched.go:575 msg="error loading llama server"',
    "print_info: n_ctx_train = 4096",
    "Error: listen tcp 127.0.0.1:1: bind: permission denied",
    "panic: $HOME is not defined",
]


def test_the_lines_about_errors_are_told_from_the_others(fakes: Fakes) -> None:
    server = fakes.new("serve")
    fakes.log.write_text("\n".join(OLLAMA_LOG), "utf-8")
    told = [OLLAMA_LOG[index] for index in (4, 5, 6, 8, 9)]
    assert told == server.error_lines(20)
    assert told[-2:] == server.error_lines(2)
    assert OLLAMA_LOG[-3:] == server.log_tail(3)


def test_the_reason_of_a_panic_is_shown_above_its_stack(fakes: Fakes) -> None:
    fakes.script.write_text(
        "print('panic: $HOME is not defined')\nfor i in range(20): print(f'main.go:{i}')\n"
        "raise SystemExit(2)",
        "utf-8",
    )
    error = fakes.failed("any")
    assert "panic: $HOME is not defined" == error.lines[0]
    assert [f"main.go:{i}" for i in range(12, 20)] == list(error.lines[1:])


def test_what_an_earlier_server_wrote_is_kept_and_not_told_again(fakes: Fakes) -> None:
    fakes.log.write_text("Error: of yesterday\n", "utf-8")
    error = fakes.failed("exits")
    assert ("Error: mkdir /models: read-only file system",) == error.lines
    assert fakes.log.read_text("utf-8").startswith("Error: of yesterday\n")


def test_the_end_of_a_long_log_is_found(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_LOG_BYTES", 100)
    server = fakes.new("serve")
    fakes.log.write_text("".join(f"Error: {i}\n" for i in range(1000)), "utf-8")
    assert ["Error: 998", "Error: 999"] == server.log_tail(2)
    assert len(server.log_tail(1000)) < 12


def test_of_a_log_without_end_the_end_is_kept(fakes: Fakes) -> None:
    fakes.log.write_text("Error: of yesterday\n", "utf-8")
    server = fakes.ready("floods")
    until(lambda: "level=INFO msg=Listening" in server.log_tail(1))
    assert supervisor.LOG_LIMIT + 1000 > fakes.log.stat().st_size
    assert ["Error: disk full"] == server.error_lines(9)
    server.stop()
    assert supervisor.LOG_LIMIT + 1000 > fakes.log.stat().st_size > process_module._LOG_BYTES
    first, left_out, *_ = fakes.log.read_text("utf-8").splitlines()
    assert "Error: of yesterday" == first
    assert re.fullmatch(r"\[4\d{7} bytes left out\]", left_out)


@pytest.mark.parametrize("length", [1, 7, 64, 500])
def test_a_log_is_cut_at_whole_lines_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(supervisor, "LOG_LIMIT", 200)
    monkeypatch.setattr(supervisor, "LOG_KEPT", 100)
    path, text = tmp_path / "log", b"".join(b"line %d\n" % i for i in range(300))
    path.write_bytes(b"before\n")
    with path.open("ab", buffering=0) as file:
        log = supervisor.Log(file.fileno())
        for begin in range(0, len(text), length):
            log.write(text[begin : begin + length])
            assert path.stat().st_size < 7 + 200 + 40
    before, left_out, rest = path.read_bytes().split(b"\n", 2)
    assert (b"before", True) == (before, text.endswith(b"\n" + rest))
    assert len(text) - len(rest) >= int(left_out.split()[0][1:]) > 0


def test_a_log_that_is_no_file_gets_everything() -> None:
    out, into = os.pipe()
    log = supervisor.Log(into)
    log.write(b"a" * 10)
    log.write(b"b" * 10)
    os.close(into)
    assert b"a" * 10 + b"b" * 10 == os.read(out, 100)
    os.close(out)
    # Nor does it matter that nobody reads it any more.
    log.write(b"c")


def test_a_log_that_is_gone_has_no_lines(fakes: Fakes) -> None:
    assert [] == fakes.new("serve").log_tail(3)


def test_passwords_of_proxies_are_not_shown(fakes: Fakes) -> None:
    fakes.log.write_text('level=ERROR env="map[HTTPS_PROXY:http://me:secret@proxy:1]"\n', "utf-8")
    assert "secret" not in "".join(fakes.new("serve").log_tail(1))


def test_the_supervisor_needs_no_library_and_none_of_the_users_files(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module of the user that is called like one of the standard library.
    folder = fakes.folder / "project"
    folder.mkdir()
    (folder / "queue.py").write_text("raise SystemExit('not ours')", "utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    server = fakes.new("serve")
    server.start()
    assert "0.33.0" == wait_until_ready(server)


def imports(path: Path) -> Sequence[str]:
    return re.findall(r"^(?:import|from) (\w+)", path.read_text("utf-8"), re.MULTILINE)


def test_the_supervisor_imports_the_standard_library_only() -> None:
    found = imports(process_module._SUPERVISOR)
    assert "subprocess" in found
    assert set() == set(found) - set(sys.stdlib_module_names)
