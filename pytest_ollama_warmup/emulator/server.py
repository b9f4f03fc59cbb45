"""The listening socket of an emulated Ollama, and the connections it has accepted."""

from __future__ import annotations

import contextlib
import functools
import socket
import socketserver
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.emulator.http import Connection
from pytest_ollama_warmup.emulator.native import NATIVE
from pytest_ollama_warmup.emulator.openai import OPENAI

if TYPE_CHECKING:
    from pytest_ollama_warmup.emulator.state import State


class Server(ThreadingHTTPServer):
    """A port of 127.0.0.1 and its connections, each served in a thread of its own.

    A *shared* port can be bound by a successor, which listens when this one does not any more.
    """

    # 32 workers that connect at once must not be refused.
    request_queue_size = 512
    server_address: tuple[str, int]

    def __init__(self, state: State, port: int, *, shared: bool) -> None:
        # Of the base class, which sets it where the system has such an option.
        self.allow_reuse_port = shared
        answer = functools.partial(Connection, state, NATIVE | OPENAI)
        super().__init__(("127.0.0.1", port), answer, bind_and_activate=False)
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
