"""The server that plays an Ollama: its port, its life, and what tests ask of it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.emulator.http import Connection
from pytest_ollama_warmup.emulator.native import NATIVE
from pytest_ollama_warmup.emulator.openai import OPENAI
from pytest_ollama_warmup.emulator.scheduler import Load, Scheduler
from pytest_ollama_warmup.emulator.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from pytest_ollama_warmup.emulator.http import Body, Request
    from pytest_ollama_warmup.emulator.script import ScriptedModel


class Emulator:
    """A server on 127.0.0.1 that plays *models*; runs while it is entered as a context.

    The port is its own from the beginning: until it is started, and after ``stop()``, connections
    are refused. *keep_alive_s* and *default_num_ctx* are what requests get that ask for nothing;
    for *start_s* seconds after it is started, requests wait.
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
        self.version, self.default_num_ctx = version, default_num_ctx
        self.store, self.scheduler = Store(), Scheduler(max_loaded, keep_alive_s)
        for model in models:
            self.add(model)
        self.log: list[Request] = []
        self.canned: tuple[int, str, bytes] | None = None
        self.tells_capabilities = True
        """Whether it says what models can do; servers before v0.6.4 do not."""
        self.edit_ps: Callable[[list[Body]], list[Body] | None] = lambda models: models
        """What it makes of its list of loaded models; None is 404, as from a proxy."""
        self._start, self._start_s = start, start_s
        self._started_at = 0.0
        self._thread: threading.Thread | None = None
        self._server = Server(self, port)
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
        self._halt()
        self._server.server_close()

    def start(self) -> None:
        """Begin to answer, with no model loaded."""
        if self._thread is None:
            self._started_at = time.monotonic()
            self._server.server_activate()
            # stop() waits for the end of a poll.
            serve, poll_s = self._server.serve_forever, 0.005
            self._thread = threading.Thread(target=serve, args=(poll_s,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Go away as a killed server does: connections are cut, loaded models are lost.

        What is pulled stays. Returns when nothing of it runs any more.
        """
        if self._thread is not None:
            self._halt()
            # Holds the port for start(): another program might get it otherwise.
            self._server = Server(self, self.port)

    def _halt(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
            self._server.server_close()
            self._server.cut_connections()
            self.scheduler.clear()

    def add(self, model: ScriptedModel) -> None:
        """Play *model* too, in place of one of its name.

        Loads and pulls under way go on by the new script: without its *load_s*, a load ends now.
        """
        self.store.add(model)

    def unload(self, name: str) -> None:
        """Take a model out of memory as soon as it is idle, as if something had evicted it."""
        if model := self.store.find(name):
            self.scheduler.unload(model)

    def kill_runner(self, name: str) -> None:
        """End the process of a loaded model; it stays listed until a request notices."""
        if model := self.store.find(name):
            self.scheduler.kill(model)

    @property
    def starting_s(self) -> float:
        """The seconds until it begins to answer."""
        return self._started_at + self._start_s - time.monotonic()

    def answer_all_with(
        self, status: int | None, content_type: str = "text/plain", body: bytes | str = b""
    ) -> None:
        """Answer every request with this, as another service or a proxy would; None ends it."""
        content = body.encode() if isinstance(body, str) else body
        self.canned = None if status is None else (status, content_type, content)

    @property
    def requests(self) -> list[Request]:
        """All requests since the last ``forget()``, as they arrived."""
        return list(self.log)

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
        self.log.clear()
        self.scheduler.loads.clear()


class _Handler(Connection):
    routes = NATIVE | OPENAI


class Server(ThreadingHTTPServer):
    """The listening socket, and the connections it has accepted."""

    # 32 workers that connect at once must not be refused.
    request_queue_size = 512
    server_address: tuple[str, int]

    def __init__(self, emulator: Emulator, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self.emulator = emulator
        self._connections: set[socket.socket] = set()
        self._ended = threading.Condition()
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Bind, without looking anything up."""
        # HTTPServer asks the resolver for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, a daemon."""
        with self._ended:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection at its end."""
        super().shutdown_request(request)
        with self._ended:
            self._connections.discard(request)
            self._ended.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong in a handler, unless it is a client that left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        """Cut all connections; returns when their handlers have ended."""
        with self._ended:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._ended.wait_for(lambda: not self._connections, timeout=10)
