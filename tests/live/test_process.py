"""A real server of our own: tuned, told apart, and gone with its llama-servers and its run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.errors import ApiError, ServerStartFailed
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.process import ManagedServer, find_binary, free_port, tuned
from tests.forked import hearing_signals
from tests.test_faults import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.provide import Provided
    from tests.live.registry import Registry

LIMIT_S = 60.0

RUN = """
import os, sys
from pathlib import Path
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.process import ManagedServer, find_binary, free_port, tuned

env = tuned(os.environ, workers=2, models=1, context_length=None, port=free_port())
server = ManagedServer(find_binary(sys.argv[1], env), env, Path(sys.argv[2]))
server.start()
server.wait_until_ready(Client(server.host), 60)
print(server.host.url, server._supervisor.pid, flush=True)
if sys.stdin.readline().strip() == "os._exit":
    os._exit(3)
"""


class Runs:
    """Runs with a server of their own, as processes that can be killed."""

    def __init__(self, ollama: Path, folder: Path) -> None:
        self._ollama, self._folder = ollama, folder
        self._started: list[subprocess.Popen[str]] = []
        self._sessions: list[int] = []

    def start(self) -> tuple[subprocess.Popen[str], Client, int]:
        """Return a run, a client of its server, and the session of all that belongs to it."""
        with hearing_signals():
            run = subprocess.Popen(
                [sys.executable, "-c", RUN, f"'{self._ollama}' serve", str(self._folder / "log")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        self._started.append(run)
        assert run.stdout is not None
        url, session = run.stdout.readline().split()
        self._sessions.append(int(session))
        return run, Client(parse_host(url, "test")), int(session)

    def end(self) -> None:
        for run in self._started:
            run.kill()
            run.communicate()
        for session in self._sessions:
            for pid in of_session(session):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def runs(parts: Provided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_NO_CLOUD", "1")
    runs = Runs(parts.ollama, tmp_path)
    yield runs
    runs.end()


@pytest.fixture
def managed(
    parts: Provided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ManagedServer]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_NO_CLOUD", "1")
    made = []

    def make(port: int = 0, **variables: str) -> ManagedServer:
        environ = {**os.environ, **variables}
        env = tuned(environ, workers=9, models=5, context_length=2048, port=port or free_port())
        command = find_binary(f"'{parts.ollama}' serve", env)
        made.append(ManagedServer(command, env, tmp_path / "serve.log"))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def of_session(session: int) -> dict[int, str]:
    """Return the names of the running processes of a session by id; a zombie does not run."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The process may end while we look.
        with contextlib.suppress(OSError):
            # "pid (name) state parent group session ...", and a name may hold spaces and brackets.
            head, _, rest = stat.read_text("utf-8", "replace").rpartition(")")
            state, _, _, its_session = rest.split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(stat.parent.name)] = head.partition("(")[2]
    return found


def load(client: Client, registry: Registry, model: str = "completion") -> None:
    name = registry.name(model)
    for _ in client.pull(name, insecure=True, silence_s=LIMIT_S):
        pass
    client.load(name, "generate", prompt="Hi", options={}, limit_s=LIMIT_S)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "os._exit", "end"])
def test_nothing_survives_a_run_with_a_model_loaded(
    runs: Runs, registry: Registry, how: str
) -> None:
    run, client, session = runs.start()
    load(client, registry)
    client.close()
    assert "llama-server" in of_session(session).values()
    if how.startswith("SIG"):
        # To the whole group, as a terminal does it.
        os.killpg(run.pid, getattr(signal, how))
    else:
        assert run.stdin is not None
        run.stdin.write(f"{how}\n")
        run.stdin.flush()
    run.wait(LIMIT_S)
    until(lambda: not of_session(session))


def test_nothing_survives_a_server_that_is_killed(runs: Runs, registry: Registry) -> None:
    _, client, session = runs.start()
    load(client, registry)
    client.close()
    (server,) = [pid for pid, name in of_session(session).items() if name == "ollama"]
    assert "llama-server" in of_session(session).values()
    os.kill(server, signal.SIGKILL)
    until(lambda: not of_session(session))


def test_nothing_survives_a_stop_with_a_model_loaded(
    managed: Callable[..., ManagedServer], registry: Registry
) -> None:
    server = managed()
    server.start()
    client = Client(server.host)
    server.wait_until_ready(client, LIMIT_S)
    load(client, registry)
    client.close()
    assert server._supervisor is not None
    session = server._supervisor.pid
    assert {"ollama", "llama-server"} < set(of_session(session).values())
    server.stop()
    until(lambda: not of_session(session))
    # It has ended as it wants to: parts of downloads are kept so.
    assert "exit code 0" == server.ended


def test_the_server_runs_with_what_it_is_tuned_to(managed: Callable[..., ManagedServer]) -> None:
    server = managed(OLLAMA_NUM_PARALLEL="2", OLLAMA_MODELS="llama3.2:1b,nomic-embed-text")
    server.start()
    client = Client(server.host)
    server.wait_until_ready(client, LIMIT_S)
    client.close()
    # The server answers before its supervisor has written all of it down.
    until(lambda: "server config" in "".join(server.log_tail(99)))
    config = server.log.read_text("utf-8").partition("server config")[2].partition("\n")[0]
    for told in (
        "OLLAMA_NUM_PARALLEL:2",
        "OLLAMA_MAX_LOADED_MODELS:5",
        "OLLAMA_CONTEXT_LENGTH:2048",
        "OLLAMA_NOPRUNE:true",
        f"OLLAMA_HOST:{server.host.url}",
        "/.ollama/models ",
    ):
        assert told in config
    assert [] == server.error_lines(9)


def test_the_log_tells_of_a_model_that_does_not_load(
    managed: Callable[..., ManagedServer], registry: Registry
) -> None:
    server = managed()
    server.start()
    client = Client(server.host)
    server.wait_until_ready(client, LIMIT_S)
    with pytest.raises(ApiError):
        load(client, registry, "broken")
    client.close()
    until(lambda: "| 500 |" in "".join(server.error_lines(9)))
    assert "error loading model" in "".join(server.error_lines(9))


def test_a_models_directory_that_cannot_be_made_is_told(
    managed: Callable[..., ManagedServer], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = managed(OLLAMA_MODELS=str(tmp_path / "file" / "models"))
    server.start()
    client = Client(server.host)
    with pytest.raises(ServerStartFailed) as caught:
        server.wait_until_ready(client, LIMIT_S)
    client.close()
    assert "exit code 1" == caught.value.words
    assert f"Error: mkdir {tmp_path / 'file'}: not a directory" in str(caught.value)


def test_a_port_that_another_server_took_meanwhile_is_told(
    managed: Callable[..., ManagedServer],
) -> None:
    first = managed()
    first.start()
    client = Client(first.host)
    first.wait_until_ready(client, LIMIT_S)
    client.close()
    second = managed(int(first.host.url.rpartition(":")[2]))
    with pytest.raises(ServerStartFailed) as caught:
        second.start()
    assert "port taken" == caught.value.cause
    assert "" == first.ended
    assert "not started" == second.ended
