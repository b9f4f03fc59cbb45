"""A bare socket that answers as no Ollama does: without an end."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, contextmanager, suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Talker:
    """A server on 127.0.0.1 that gives one answer to all, and has a thread for each connection."""

    def __init__(self, answer: Callable[[], Iterable[bytes]], pause_s: float) -> None:
        self._answer, self._pause_s = answer, pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.requests: list[bytes] = []
        self.left, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        # close() alone would not wake the thread that waits in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            self.requests.append(connection.recv(65536))
            try:
                for part in self._answer():
                    if self._over.wait(self._pause_s) if self._pause_s else self._over.is_set():
                        return
                    connection.sendall(part)
                    self.sent += len(part)
                # Closed with a part of the request unread, it would take back what it has sent.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                self.left.set()


@contextmanager
def talking(
    answer: Callable[[], Iterable[bytes]], pause_s: float = 0.0
) -> Iterator[tuple[Talker, Client]]:
    with (
        closing(Talker(answer, pause_s)) as talker,
        closing(Client(parse_host(talker.address, "OLLAMA_HOST"))) as client,
    ):
        yield talker, client


def whole(body: bytes, more: bytes = b"") -> Callable[[], Iterable[bytes]]:
    return lambda: [HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body]


def endless(head: bytes, part: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: chain([head], repeat(part))


def chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


SLOW = {
    "body": endless(HEAD + b"\r\n", b" "),
    "chunks": endless(CHUNKED, b"1\r\n \r\n"),
    "100 Continue": endless(b"", CONTINUE),
    "102 Processing": endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "header": endless(HEAD + b"x: ", b"y"),
    "headers": endless(HEAD, b"x: y\r\n"),
    "status line": endless(b"HTTP/1.1 200 ", b"O"),
    "chunk extension": endless(CHUNKED + b"1;", b"x"),
    "length": endless(HEAD + b"content-length: 1000000\r\n\r\n", b"["),
}
FAST = {
    "body": endless(HEAD + b"\r\n", b"[" * 65536),
    "chunks": endless(CHUNKED, b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "100 Continue": endless(b"", b"HTTP/1.1 100 Continue\r\nx: " + b"y" * 30_000 + b"\r\n\r\n"),
}
