"""Run a real Ollama server of our own, and talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
REQUEST_LIMIT_S = 60.0

# A proxy of the environment must not see requests to 127.0.0.1: urllib would send them there.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The server answered with an error status; ``status`` and ``text`` are its answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class RealServer:
    """``ollama serve`` on a free loopback port, with a HOME of its own.

    No ``OLLAMA_*`` variable of the environment reaches it; those in *env* do. Without *models* it
    keeps its models in its HOME, which lasts as long as the context.
    """

    def __init__(
        self, ollama: Path, models: Path | None = None, env: dict[str, str] | None = None
    ) -> None:
        self._ollama = ollama
        self._env = env or {}
        self._home = tempfile.TemporaryDirectory(prefix="ollama-")
        self.log = Path(self._home.name) / "serve.log"
        self.models = models or Path(self._home.name) / "models"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RealServer:
        try:
            self._start()
        except BaseException:
            self._home.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._home.cleanup()

    @property
    def url(self) -> str:
        """URL without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server, also when it no longer runs."""
        assert self._process is not None
        return self._process.pid

    def log_text(self) -> str:
        """Return what the server wrote since the context was entered."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def processes(self) -> list[int]:
        """Return the ids of the server and its llama-servers, as far as they run."""
        return _group(self.pid)

    def stop(self) -> None:
        """End the server with SIGTERM, and what is left after that with SIGKILL."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server with SIGKILL, then the llama-servers that it leaves behind."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server if it runs and start it on the same port, models and log."""
        self.stop()
        self._start()

    def get(self, path: str, *, limit_s: float = REQUEST_LIMIT_S) -> Any:
        """Return the JSON answer of GET *path*; raise :class:`Refused` on an error status."""
        return self._request(urllib.request.Request(self.url + path), limit_s)

    def post(self, path: str, body: dict[str, Any], *, limit_s: float = REQUEST_LIMIT_S) -> Any:
        """Like :meth:`get` for POST of *body*; send ``stream: False`` where that is not default."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.url + path, data, headers), limit_s)

    def delete(self, name: str) -> None:
        """Take *name* off the disk; raise :class:`Refused` if it is not there."""
        data = json.dumps({"model": name}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + "/api/delete", data, headers, method="DELETE")
        self._request(request, REQUEST_LIMIT_S)

    def pull(self, name: str, *, limit_s: float = REQUEST_LIMIT_S) -> None:
        """Pull *name* from a plain-http registry; raise :class:`Refused` if that fails."""
        self.post("/api/pull", {"model": name, "insecure": True, "stream": False}, limit_s=limit_s)

    def loaded(self) -> list[str]:
        """Return the names of the models in memory."""
        return [model["name"] for model in self.get("/api/ps")["models"]]

    def loads(self) -> int:
        """Return how many loads the log tells of since the context was entered."""
        return self.log_text().count('msg="loading model via llama-server"')

    def calls(self, path: str) -> int:
        """Return how many requests to *path* are over."""
        return self.log_text().count(f'"{path}"\n')

    def unload(self, name: str) -> None:
        """Take *name* out of memory and wait until it is gone."""
        # Taken for an embedding model too: unlike /api/embed this unloads before it asks what the
        # model can do, and never loads it first.
        self.post("/api/generate", {"model": name, "keep_alive": 0, "stream": False})
        if not _until(lambda: name not in self.loaded(), STOP_LIMIT_S):
            raise TimeoutError(f"{name} is still loaded after {STOP_LIMIT_S:.0f} s")

    def _request(self, request: urllib.request.Request, limit_s: float) -> Any:
        try:
            with OPENER.open(request, timeout=limit_s) as answer:
                content = answer.read()
                # Some answers, like that of /api/copy, have no body.
                return json.loads(content) if content else None
        except urllib.error.HTTPError as exc:
            with exc:
                raise Refused(exc.code, exc.read().decode("utf-8", "replace")) from None

    def _start(self) -> None:
        # Between choosing a free port and listening on it another process can take it; after a
        # restart it must be the same one.
        tries = 1 if self.port else 3
        for left in reversed(range(tries)):
            self.port = self.port or free_port()
            told = len(self.log_text())
            try:
                if self._comes_up(told=told):
                    return
            except BaseException:
                self.kill()
                raise
            self.kill()
            log = self.log_text()[told:]
            if not left or "address already in use" not in log:
                raise RuntimeError(f"ollama serve did not start:\n{log[-2000:]}")
            self.port = 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
        env |= {
            "HOME": self._home.name,
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
            "OLLAMA_NO_CLOUD": "1",
            **self._env,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._ollama), "serve"],
                env=env,
                # Ollama also looks for llama-server below the current directory.
                cwd=self._home.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, which its llama-servers stay in after it has died.
                start_new_session=True,
            )
        return self._process

    def _comes_up(self, *, told: int) -> bool:
        """Start the process and wait until it answers; False if it ends or takes too long.

        The log already holds *told* characters.
        """
        process = self._spawn()

        # On a port that another server took, that one answers while ours is ending.
        def settled() -> bool:
            return process.poll() is not None or "Listening on " in self.log_text()[told:]

        if not _until(settled, START_LIMIT_S) or process.poll() is not None:
            return False
        self.get("/api/version", limit_s=START_LIMIT_S)
        return True

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # The orphans are not our children: there is nothing to wait for but their absence.
        if not _until(lambda: not _group(process.pid), STOP_LIMIT_S):
            raise TimeoutError(f"processes {_group(process.pid)} survive SIGKILL")


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _group(leader: int) -> list[int]:
    """Return the running processes of a process group; a zombie does not run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The process may end while we look.
        with contextlib.suppress(OSError):
            # "pid (name) state parent group ...", and a name may hold spaces and brackets.
            state, _, group = stat.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def _until(check: Callable[[], bool], limit_s: float) -> bool:
    """Check again and again; False when *limit_s* seconds are over."""
    end = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
