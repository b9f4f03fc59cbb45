"""The connections of an emulated Ollama: read requests, send answers and streams."""

from __future__ import annotations

import json
import select
import socket
import time
from email.utils import formatdate
from http.client import responses
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.emulator.script import (
    ClientGone,
    ConnectionDropped,
    Refusal,
    ScriptedModel,
)
from pytest_ollama_warmup.emulator.state import Body, Request, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FIELD_TYPES = {"model": str, "name": str, "prompt": str, "messages": list, "options": dict}


class Route(NamedTuple):
    """By which method a path is asked, and who answers it, well or not."""

    method: str
    answer: Callable[[Connection, Body], None]
    refuse: Callable[[Connection, Refusal], None]


class Connection(BaseHTTPRequestHandler):
    """One connection; reads requests, keeps them in the emulator's log, and has them answered."""

    protocol_version = "HTTP/1.1"
    # With Nagle, a line of a stream waits up to 40 ms for the client's acknowledgement.
    disable_nagle_algorithm = True
    streaming = False
    """Whether an answer has begun that has no end yet."""

    def __init__(self, state: State, routes: Mapping[str, Route], *connected: Any) -> None:
        self.state, self._routes = state, routes
        self._cut_after: int | None = None
        # Serves the connection until it ends.
        super().__init__(*connected)

    def do_GET(self) -> None:
        """Answer a request of any method."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, state = self.path.partition("?")[0], self.state
        has_body = self.command in ("POST", "DELETE")
        body, problem = _read_json(content) if has_body else ({}, "")
        headers = {key.lower(): value for key, value in self.headers.items()}
        state.log.append(
            Request(self.command, path, name_in(body), body, headers, time.monotonic())
        )
        try:
            # It listens before it has looked for GPUs, and lets clients wait until then.
            self.pause(state.starting_s)
            if state.canned is not None:
                self.send(*state.canned)
            else:
                self._route(path, body, problem)
        except (ClientGone, ConnectionDropped, ConnectionError):
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the emulator keeps a log."""

    def found(self, name: str, problem: str) -> ScriptedModel:
        """Return the model that is there under *name*.

        Raises:
            Refusal: 404 with *problem*, there is none.
        """
        model = self.state.store.find(name) if name else None
        if model is None or not model.present:
            raise Refusal(404, problem)
        return model

    def gone(self) -> bool:
        """Whether the client has closed its connection."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def pause(self, seconds: float, check: Callable[[], object] = lambda: None) -> None:
        """Sleep, but not longer than the client stays; *check* is called all the while.

        Raises:
            ClientGone: it has left.
        """
        until = time.monotonic() + seconds
        while not self.gone():
            check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.01))
        raise ClientGone

    def send_json(self, data: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(status, "application/json; charset=utf-8", write_json(data))

    def send(self, status: int, content_type: str, content: bytes) -> None:
        """Answer."""
        length = f"Content-Length: {len(content)}"
        if self._cut_after is not None:
            self._send_head(status, content_type, length, content[: len(content) // 2])
            raise ConnectionDropped
        self._send_head(status, content_type, length, content)

    def begin_stream(self, content_type: str = "application/x-ndjson") -> None:
        """Answer with what is sent until ``end_stream``."""
        self.streaming = True
        self._send_head(200, content_type, "Transfer-Encoding: chunked")

    def send_line(self, data: object) -> None:
        """Send a line of JSON in a stream."""
        self.send_part(write_json(data) + b"\n")

    def send_part(self, part: bytes) -> None:
        """Send bytes in a stream."""
        if self._cut_after is not None:
            if not self._cut_after:
                raise ConnectionDropped
            self._cut_after -= 1
        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def end_stream(self) -> None:
        """Say that no more comes."""
        if self._cut_after is not None:
            raise ConnectionDropped
        self.streaming = False
        self.wfile.write(b"0\r\n\r\n")

    def _route(self, path: str, body: Body, problem: str) -> None:
        fault = self.state.take_fault(path)
        self._cut_after = fault.cut_after if fault else None
        if self._cut_after == 0:
            raise ConnectionDropped
        if path not in self._routes:
            self.send(404, "text/plain", b"404 page not found")
            return
        route = self._routes[path]
        if route.method != self.command:
            self.send(405, "text/plain", b"405 method not allowed")
            return
        try:
            if fault and fault.error:
                raise Refusal(*fault.error)
            if problem:
                raise Refusal(400, problem)
            route.answer(self, body)
        except Refusal as refusal:
            route.refuse(self, refusal)

    def _send_head(self, status: int, content_type: str, length: str, content: bytes = b"") -> None:
        lines = [
            f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}",
            "Server: pytest-ollama-warmup-emulator",
            f"Date: {formatdate(usegmt=True)}",
            *([f"Content-Type: {content_type}"] if content_type else []),
            length,
        ]
        # Head and body in one piece: two would cost a second packet and the reader's wake-up.
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)


def name_in(body: Body) -> str:
    """Return the model that a request names."""
    return str(body.get("model") or body.get("name") or "")


def write_json(data: object) -> bytes:
    """Write JSON as Go does, without spaces."""
    return json.dumps(data, separators=(",", ":")).encode()


def _read_json(content: bytes) -> tuple[Body, str]:
    """Return the object in a request's body, an empty one if there is none, and what is wrong."""
    if not content:
        return {}, "missing request body"
    try:
        data = json.loads(content)
    except ValueError as exc:
        return {}, f"invalid JSON: {exc}"
    if not isinstance(data, dict):
        return {}, "json: cannot unmarshal into Go value of type object"
    for key, kind in _FIELD_TYPES.items():
        if not isinstance(data.get(key), kind | None):
            return data, f"json: cannot unmarshal into Go struct field {key} of another type"
    return data, ""
