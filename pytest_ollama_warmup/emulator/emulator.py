"""The emulator as a test holds it: script models and faults, stop and start it, read its log."""

from __future__ import annotations

import threading
import time
from http.client import responses
from typing import TYPE_CHECKING

from pytest_ollama_warmup.emulator.scheduler import Load, Scheduler
from pytest_ollama_warmup.emulator.script import ANSWER, BUSY, Fault, ScriptedModel
from pytest_ollama_warmup.emulator.server import Server
from pytest_ollama_warmup.emulator.state import Request, State
from pytest_ollama_warmup.emulator.store import Store

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from types import TracebackType


class Emulator:
    """An emulated Ollama on 127.0.0.1; runs while it is entered as a context.

    It speaks HTTP like Ollama v0.33.0 and has no models behind it: *models* are scripted, and an
    answer says that it is an emulator's unless the script has another one. The port is its own
    from the beginning: before it is started, and after ``stop()``, connections are refused.
    *keep_alive_s* and *default_num_ctx* apply to requests that ask for nothing; for *start_s*
    seconds after it is started, requests wait.
    """

    def __init__(
        self,
        models: Iterable[ScriptedModel] = (),
        *,
        port: int = 0,
        version: str = "0.33.0",
        max_loaded: int = 3,
        keep_alive_s: float = 300.0,
        default_num_ctx: int = 4096,
        start: bool = True,
        start_s: float = 0.0,
    ) -> None:
        self.store, self.scheduler = Store(), Scheduler(max_loaded, keep_alive_s)
        self.state = State(self.store, self.scheduler, version, default_num_ctx)
        for model in models:
            self.add(model)
        self._start, self._start_s = start, start_s
        # A restart may start it from another thread.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._restart: threading.Timer | None = None
        # Not one that was asked for: whoever else listens there would share it silently.
        self._shared = port == 0
        self._server = Server(self.state, port, shared=self._shared)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Emulator:
        if self._start:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._halt()
            self._server.server_close()

    def model(
        self,
        name: str,
        *,
        present: bool = True,
        load_s: float = 0.0,
        eval_s: float = 0.0,
        answer: str = ANSWER,
        capabilities: Collection[str] = ("completion",),
        load_error: str | None = None,
        pull_rate: float | None = None,
        size: int = 1_000_000,
    ) -> None:
        """Serve a model, or change the one of this name; requests under way go on by the change.

        Args:
            name: As a client spells it: ``llama3.2:1b``.
            present: Whether it is pulled. If not, requests get 404 until a client pulls it.
            load_s: How many seconds a load takes. The first request loads the model, and so does
                a request with another ``num_ctx``.
            eval_s: How many seconds an answer takes, from its first word to its last.
            answer: The text of each answer; a streamed answer sends it word by word.
            capabilities: What ``/api/show`` lists: ``embedding`` for an embedding model.
            load_error: The message with which each load fails, as HTTP 500.
            pull_rate: Bytes a second of a pull; None pulls at once.
            size: The model's size in bytes.
        """
        self.add(
            ScriptedModel(
                name,
                present=present,
                load_s=load_s,
                eval_s=eval_s,
                answer=answer,
                capabilities=capabilities,
                load_error=load_error,
                pull_rate=pull_rate,
                size=size,
            )
        )

    def add(self, model: ScriptedModel) -> None:
        """Serve *model*, which can script more than ``model()``: pulls that stall or break.

        Replaces the model of that name. Loads and pulls under way go on by the new script: without
        its *load_s*, a load ends now.
        """
        self.store.add(model)

    def fail(
        self,
        status: int = 503,
        *,
        times: int | None = 1,
        path: str = "",
        message: str = "",
    ) -> None:
        """Answer the next requests with an error, in the form that Ollama gives it.

        Args:
            status: The HTTP status.
            times: How many requests fail; None is all until ``clear_faults()``.
            path: Only requests to this path count, such as ``/api/chat``; empty is any path.
            message: Ollama's text for 503 if it is empty, for others the name of the status.
        """
        text = message or (BUSY if status == 503 else responses.get(status, "error"))
        self.state.faults.append(Fault(path, times, error=(status, text)))

    def cut(self, after: int = 0, *, times: int | None = 1, path: str = "") -> None:
        """Break the connection during the answer to the next requests.

        Args:
            after: How many parts of a streamed answer (words of a chat, lines of a pull) are sent
                first. 0 breaks the connection before an answer; an answer that is not streamed
                otherwise ends half-way.
            times: How many requests are cut; None is all until ``clear_faults()``.
            path: Only requests to this path count, such as ``/api/chat``; empty is any path.
        """
        self.state.faults.append(Fault(path, times, cut_after=after))

    def clear_faults(self) -> None:
        """Answer again: forget what ``fail()`` and ``cut()`` have left."""
        self.state.faults.clear()

    def start(self) -> None:
        """Begin to answer, with no model loaded."""
        with self._lock:
            if self._thread is None:
                self.state.ready_at = time.monotonic() + self._start_s
                self._server.server_activate()
                # stop() waits for the end of a poll.
                serve, poll_s = self._server.serve_forever, 0.005
                self._thread = threading.Thread(target=serve, args=(poll_s,), daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Go away as a killed server does: connections are cut, loaded models are lost.

        What is pulled stays. Returns when nothing of it runs any more.
        """
        with self._lock:
            ran = self._thread is not None
            # Holds the port for start(), where that can be without a moment between: another
            # program's connection may get it otherwise.
            holder = self._successor() if ran and self._shared else None
            self._halt()
            if ran:
                self._server = holder or self._successor()

    def _successor(self) -> Server:
        return Server(self.state, self.port, shared=self._shared)

    def restart(self, down_s: float = 0.0) -> None:
        """Stop now, and start again after *down_s* seconds, which this does not wait for."""
        with self._lock:
            self.stop()
            if down_s <= 0:
                self.start()
                return
            self._restart = threading.Timer(down_s, self._start_again)
            self._restart.daemon = True
            self._restart.start()

    def _start_again(self) -> None:
        with self._lock:
            # A later stop, or the end, cancels it even if it waits for the lock by then.
            if self._restart is threading.current_thread():
                self.start()

    def _halt(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
            self._server.server_close()
            self._server.cut_connections()
            self.scheduler.clear()

    def unload(self, name: str) -> None:
        """Take a model out of memory as soon as it is idle, as if something had evicted it."""
        if model := self.store.find(name):
            self.scheduler.unload(model)

    def kill_runner(self, name: str) -> None:
        """End the process of a loaded model; it stays listed until a request notices."""
        if model := self.store.find(name):
            self.scheduler.kill(model)

    def answer_all_with(
        self, status: int | None, content_type: str = "text/plain", body: bytes | str = b""
    ) -> None:
        """Answer every request with this, as another service or a proxy would; None ends it."""
        content = body.encode() if isinstance(body, str) else body
        self.state.canned = None if status is None else (status, content_type, content)

    @property
    def requests(self) -> list[Request]:
        """All requests since the last ``forget()``, as they arrived."""
        return list(self.state.log)

    def calls(self, verb: str) -> list[Request]:
        """Return the requests to ``/api/`` + *verb*."""
        return [request for request in self.requests if request.path == f"/api/{verb}"]

    @property
    def pulls(self) -> list[str]:
        """The names of all pull requests."""
        return [request.model for request in self.calls("pull")]

    @property
    def loads(self) -> list[Load]:
        """Loads that ended with the model in memory: its name, and all options it runs with."""
        return list(self.scheduler.loads)

    @property
    def loading(self) -> str | None:
        """The model that is being loaded now."""
        return self.scheduler.loading

    @property
    def pulling(self) -> list[str]:
        """The models whose bytes are on their way now."""
        return self.store.pulling()

    def forget(self) -> None:
        """Empty ``requests`` and ``loads``."""
        self.state.log.clear()
        self.scheduler.loads.clear()
