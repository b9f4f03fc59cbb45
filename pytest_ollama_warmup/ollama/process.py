"""A server of our own: ``ollama serve`` for one run, gone with it whatever ends the run."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.errors import (
    Aborted,
    BadSetting,
    NotOllama,
    OllamaNotFound,
    ServerError,
    ServerStartFailed,
    ServerUnreachable,
)
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.text import clean, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from pytest_ollama_warmup.ollama.client import Client

COMMAND = "ollama serve"
OPTION = "--ollama-serve"

# Where Ollama's own installers put it; not all of them extend PATH, and not for every shell.
_PLACES = (
    "/usr/local/bin/ollama",
    "/Applications/Ollama.app/Contents/Resources/ollama",
)
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
# The supervisor allows the server 5 s after SIGTERM, and as long again after SIGKILL.
_STOP_LIMIT_S = 15.0
# One that cannot have its port needs a moment to say so, while another answers there.
_LAST_WORDS_S = 0.5
_LOG_BYTES = 1 << 20
_TAKEN = re.compile(r"address already in use|Only one usage of each socket address")
# Of Ollama v0.33 (slog), Gin, Go, and of the llama-server whose words stand between theirs. Offline
# it warns at every start of what it could not fetch: warnings are left out.
_ERROR_LINE = re.compile(
    r"level=(?:ERROR|FATAL)"
    r"|^\[GIN\].*\|\s*5\d\d\s*\|"
    r"|^(?:Error|panic|fatal error|runtime error):"
    r"|^(?!.*\blevel=|\[GIN).*\b(?:error|failed|fatal|abort(?:ed)?|out of memory)\b",
    re.IGNORECASE,
)


def find_binary(command: str, environ: Mapping[str, str]) -> list[str]:
    """Return *command* as arguments, the first of them the absolute path of an executable.

    Looked for on PATH; ``ollama`` also where its installers put it.

    Raises:
        BadSetting: it is empty, or a quote in it is never closed.
        OllamaNotFound: no such executable.
    """
    words = _split(command)
    name, places = words[0], []
    if name.lower() in ("ollama", "ollama.exe"):
        places = [*_PLACES]
        if programs := environ.get("LOCALAPPDATA"):
            places.append(str(Path(programs, "Programs", "Ollama", "ollama.exe")))
    # PATH of *environ*: with None, which() would take that of this process.
    for place in (name, *places):
        if executable := shutil.which(place, path=environ.get("PATH", "")):
            return [str(Path(executable).absolute()), *words[1:]]
    on_path = Path(name).parent == Path()
    raise OllamaNotFound(name, ("PATH", *places) if on_path else (str(Path(name).absolute()),))


def free_port() -> int:
    """Return a loopback port that nobody listens on now, nor is likely to take soon.

    Minutes may pass until the server starts. Up to 29999 a port lies below those that Linux
    (32768), macOS and Windows (49152) give to outgoing connections and to whoever asks for any.
    """
    for _ in range(100):
        # Not random: seeded alike, two runs would choose alike.
        port = 20000 + secrets.randbelow(10000)
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tuned(
    environ: Mapping[str, str], *, workers: int, models: int, context_length: int | None, port: int
) -> dict[str, str]:
    """Return the environment of a server for *workers* that use *models* models.

    *context_length*, in tokens, is the one that all specs agree on: clients of ``/v1`` cannot ask
    for it. What the user has set stays.
    """
    own = {
        # Each slot costs the memory of a context.
        "OLLAMA_NUM_PARALLEL": str(max(1, min(workers, 4))),
        # Three is what the server takes by itself, for each GPU.
        "OLLAMA_MAX_LOADED_MODELS": str(max(3, models)),
        # A second server on the user's store would delete the parts that the first one downloads.
        "OLLAMA_NOPRUNE": "1",
    }
    if context_length is not None:
        own["OLLAMA_CONTEXT_LENGTH"] = str(context_length)
    env = {**environ, **{name: value for name, value in own.items() if not _var(environ, name)}}
    env["OLLAMA_HOST"] = f"127.0.0.1:{port}"
    # To the server the variable is a directory: it would make one that is called like our models.
    if "OLLAMA_MODELS" in env and not is_folder(env["OLLAMA_MODELS"]):
        del env["OLLAMA_MODELS"]
    return env


def is_folder(text: str) -> bool:
    """Whether a value of OLLAMA_MODELS is the server's directory, and no list of models.

    A model's name may hold slashes, but begins with none.
    """
    return re.match(r"[/~.\\]|[A-Za-z]:[\\/]", text.strip().strip("\"'").strip()) is not None


class ManagedServer:
    """A server that ends with this process, whatever ends it: Ctrl-C, SIGKILL or ``os._exit``.

    Between the two stands ``supervisor.py``, in a session of its own: no signal of the terminal
    reaches it or the server. *command* is that of :func:`find_binary`, *environ* that of
    :func:`tuned`; both outputs are appended to *log*.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self._command, self.environ = list(command), dict(environ)
        self.host = parse_host(environ["OLLAMA_HOST"], OPTION)
        self.log = log
        self._log_begin = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> ManagedServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def ended(self) -> str:
        """How the server ended, ``exit code 1``; empty while it runs."""
        if self._supervisor is None:
            return "not started"
        code = self._supervisor.poll()
        if code is None:
            return ""
        if code < 0:
            # Nothing would end the server with this process any more.
            self._end_orphans()
            return f"its supervisor was ended by {_signal_name(-code)}"
        return f"ended by {_signal_name(code - 128)}" if code > 128 else f"exit code {code}"

    def start(self) -> None:
        """Start the process; it does not answer yet.

        Raises:
            ServerStartFailed: another process listens on the port.
        """
        port = int(self.host.url.rpartition(":")[2])
        if not _is_free(port):
            # Else the other one might answer while ours is still on its way to the same finding.
            url, source = self.host.url, self.host.source
            raise ServerStartFailed(url, source, f"port {port} is taken", "", (), "port taken")
        if self.log.exists():
            self._log_begin = self.log.stat().st_size
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                # -I: no variable and no file of the user's project can make it another program.
                [sys.executable, "-I", str(_SUPERVISOR), *self._command],
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                **detached(),
            )
        self._owner = os.getpid()

    def wait_until_ready(
        self,
        client: Client,
        limit_s: float,
        on_wait: Callable[[str, float], None] = lambda cause, waited_s: None,
    ) -> str:
        """Wait until the server answers *client*, at most *limit_s* seconds; return its version.

        *on_wait* as in :meth:`Client.wait_until_ready`. A server that does not come up is stopped.

        Raises:
            ServerStartFailed: it ended, does not answer, or answers as something else; or another
                process has taken the port since it was chosen.
        """

        def still_there(cause: str, waited_s: float) -> None:
            if ended := self.ended:
                raise self._failed(ended)
            on_wait(cause, waited_s)

        try:
            version = client.wait_until_ready(limit_s, still_there)
        except (Aborted, ServerStartFailed):
            raise
        except ServerUnreachable as exc:
            raise self._failed(f"{exc.why} for {seconds(limit_s)}") from exc
        except NotOllama as exc:
            cause = f"what answers is not Ollama (GET /api/version: {exc.seen})"
            raise self._failed(cause) from exc
        except ServerError as exc:
            raise self._failed(exc.brief) from exc
        # Perhaps another process has answered while ours ended.
        if ended := self.ended:
            raise self._failed(ended)
        return version

    def stop(self) -> None:
        """End the server with all its children; again does nothing.

        Takes milliseconds, with a server that does not care for SIGTERM 5 s.
        """
        supervisor = self._supervisor
        # A fork of this process has the same object, and the server is none of its business.
        if supervisor is None or os.getpid() != self._owner:
            return
        assert supervisor.stdin is not None
        if not supervisor.stdin.closed:
            with contextlib.suppress(OSError):
                # Closing would do, but for forks that hold the pipe too.
                supervisor.stdin.write(b"\n")
            supervisor.stdin.close()
        try:
            supervisor.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        self._end_orphans()

    def log_tail(self, number: int) -> list[str]:
        """Return the last *number* lines that the server wrote, without empty ones."""
        return self._lines()[-number:]

    def error_lines(self, number: int) -> list[str]:
        """Return the last *number* lines that are about errors, out of the last megabyte."""
        return [line for line in self._lines() if _ERROR_LINE.search(line)][-number:]

    def _lines(self) -> list[str]:
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_begin, size - _LOG_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        # A value in it may be a password in the URL of a proxy: clean() hides it.
        return [shown for line in text.splitlines() if (shown := clean(line, 300))]

    def _failed(self, cause: str) -> ServerStartFailed:
        supervisor = self._supervisor
        if supervisor is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(_LAST_WORDS_S)
                cause = self.ended or cause
        self.stop()
        tail = self.log_tail(8)
        # A Go program that panics buries the reason under its stack.
        lines = (*(line for line in self.error_lines(3) if line not in tail), *tail)
        # The server says so in its log only.
        taken = any(map(_TAKEN.search, lines))
        return ServerStartFailed(
            self.host.url,
            self.host.source,
            cause,
            str(self.log),
            lines,
            "port taken" if taken else "start failed",
        )

    def _end_orphans(self) -> None:
        """End what a supervisor that was killed has left; it wrote the id of its server."""
        supervisor = self._supervisor
        if supervisor is None or supervisor.stdout is None or supervisor.stdout.closed:
            return
        with supervisor.stdout as output:
            server = output.read().strip()
        if supervisor.returncode < 0 and server and sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(server), signal.SIGKILL)


def _split(command: str) -> list[str]:
    allowed = f"Give the command that starts the server, such as {COMMAND!r}."
    source = f"{OPTION}-command"
    try:
        # To POSIX rules the backslashes of C:\Programs are escapes.
        if sys.platform == "win32":
            words = [word.strip('"') for word in shlex.split(command, posix=False)]
        else:
            words = shlex.split(command)
    except ValueError as exc:
        raise BadSetting(command, source, f"{exc}. {allowed}") from None
    if not words:
        raise BadSetting(command, source, allowed)
    return words


def _var(environ: Mapping[str, str], name: str) -> str:
    # As the server reads it (v0.33, envconfig.Var): with nothing but spaces it is not set.
    return environ.get(name, "").strip().strip("\"'")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: what is left of connections that were closed is no hindrance. On
        # Windows the flag would let it take the port of another.
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def detached() -> dict[str, Any]:
    """Return the arguments of ``Popen`` for a process that no Ctrl-C of the terminal reaches."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
