"""The HTTP side of an emulated Ollama: each path of its API that pulling and warming need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import time
from dataclasses import dataclass, replace
from email.utils import formatdate
from http.client import responses
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

from pytest_ollama_warmup.ollama.emulated import (
    ClientGone,
    Refusal,
    ScriptedModel,
    lease_of,
    parse_name,
    runner_options,
)
from pytest_ollama_warmup.ollama.names import ModelName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_ollama_warmup.ollama.emulator import Emulator, Server

Body = dict[str, Any]

_ANSWER = ("I", "am", "an", "emulator,", "not", "a", "model,", "sorry.")
_DETAILS = {"format": "gguf", "family": "emulated", "families": ["emulated"]}
_FIELD_TYPES = {"model": str, "name": str, "prompt": str, "messages": list, "options": dict}
_STARTED_NS = time.time_ns()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; *model* as the client spelled it, header names in lower case."""

    method: str
    path: str
    model: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at: float
    """``time.monotonic()``."""


class Handler(BaseHTTPRequestHandler):
    """One connection; reads requests, keeps them in the emulator's log, and answers."""

    protocol_version = "HTTP/1.1"
    # With Nagle, a line of a stream waits up to 40 ms for the client's acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a request of any method."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, emulator = self.path.partition("?")[0], self._emulator
        body, problem = _read_json(content) if self.command == "POST" else ({}, "")
        headers = {key.lower(): value for key, value in self.headers.items()}
        emulator.log.append(
            Request(self.command, path, _name_in(body), body, headers, time.monotonic())
        )
        try:
            if emulator.canned is not None:
                self._send(*emulator.canned)
            else:
                self._route(path, body, problem)
        except Refusal as refusal:
            self._send_json({"error": refusal.text}, refusal.status)
        except (ClientGone, ConnectionError):
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the emulator keeps a log."""

    @property
    def _emulator(self) -> Emulator:
        return cast("Server", self.server).emulator

    def _route(self, path: str, body: Body, problem: str) -> None:
        if path not in _ROUTES:
            self._send(404, "text/plain", b"404 page not found")
            return
        method, answer = _ROUTES[path]
        if method != self.command:
            self._send(405, "text/plain", b"405 method not allowed")
            return
        if problem:
            raise Refusal(400, problem)
        answer(self, body)

    def _root(self, body: Body) -> None:
        self._send(200, "text/plain; charset=utf-8", b"Ollama is running")

    def _version(self, body: Body) -> None:
        self._send_json({"version": self._emulator.version})

    def _tags(self, body: Body) -> None:
        models = [
            {**_entry(model), **self._abilities(model), **_origin(model)}
            for model in self._emulator.store.present()
        ]
        self._send_json({"models": models})

    def _ps(self, body: Body) -> None:
        models = [
            {
                **_entry(runner.model),
                "expires_at": _timestamp(time.time_ns() + int(runner.left_s() * 1e9)),
                "size_vram": 0,
                "context_length": runner.options["num_ctx"],
            }
            for runner in self._emulator.scheduler.resident()
        ]
        self._send_json({"models": models})

    def _show(self, body: Body) -> None:
        name = _name_in(body)
        if not name:
            raise Refusal(400, "model is required")
        model = self._found(name, f"model '{parse_name(name).short}' not found")
        info = {
            "modelfile": f"FROM {model.name}\n",
            "template": "{{ .Prompt }}",
            "details": _DETAILS,
            "model_info": {
                "general.architecture": "emulated",
                "emulated.context_length": model.context_length,
            },
            "tensors": [],
        }
        self._send_json(info | self._abilities(model) | _origin(model))

    def _abilities(self, model: ScriptedModel) -> Body:
        return (
            {"capabilities": list(model.capabilities)} if self._emulator.tells_capabilities else {}
        )

    def _copy(self, body: Body) -> None:
        names = {}
        for part in ("source", "destination"):
            try:
                names[part] = ModelName.parse(str(body.get(part, ""))).short
            except ValueError:
                raise Refusal(400, f'{part} "{body.get(part, "")}" is invalid') from None
        model = self._found(names["source"], f'model "{body["source"]}" not found')
        self._emulator.add(replace(model, name=names["destination"]))
        self._send(200, "", b"")

    def _pull(self, body: Body) -> None:
        store = self._emulator.store
        with contextlib.closing(store.pull(store.find(_name_in(body)), self._pause)) as lines:
            if body.get("stream") is False:
                # A failure has a status here: nothing was sent yet.
                *_, last = lines
                self._send_json(last)
                return
            self._begin_stream()
            try:
                for line in lines:
                    self._send_line(line)
            except Refusal as refusal:
                self._send_line({"error": refusal.text})
            self._end_stream()

    def _generate(self, body: Body) -> None:
        prompt = body.get("prompt")
        self._complete(body, "generate", [prompt] if prompt else [])

    def _chat(self, body: Body) -> None:
        if not _name_in(body):
            raise Refusal(400, "model is required")
        messages = body.get("messages") or []
        self._complete(body, "chat", [str(message.get("content")) for message in messages])

    def _complete(self, body: Body, verb: str, asked: Sequence[str]) -> None:
        """Generate; with nothing *asked*, only load, or unload where the lease is 0."""
        clock, name, sent = _Clock(), _name_in(body), body.get("options") or {}
        lease_s = lease_of(body.get("keep_alive"))
        model = self._found(name, f"model '{name}' not found")
        scheduler = self._emulator.scheduler

        def part(text: str, **last: object) -> Body:
            content: object = {"role": "assistant", "content": text} if verb == "chat" else text
            key = "message" if verb == "chat" else "response"
            made = {"model": name, "created_at": _timestamp(time.time_ns()), key: content}
            return {**made, "done": bool(last), **last}

        if not asked and lease_s == 0:
            scheduler.unload(model)
            self._send_json(part("", done_reason="unload"))
            return
        _refuse_remote(model)
        if model.damaged or "completion" not in model.capabilities:
            raise Refusal(400, f'"{name}" does not support {verb}')
        if body.get("think") and "thinking" not in model.capabilities:
            raise Refusal(400, f'"{name}" does not support thinking')
        options = runner_options(sent, model, self._emulator.default_num_ctx)
        limit = sent.get("num_predict")
        words = _ANSWER[:limit] if isinstance(limit, int) and limit > 0 else _ANSWER
        streams = body.get("stream") is not False
        with scheduler.runner(model, options, lease_s, self._gone) as runner:
            clock.loaded()
            if asked:
                with runner.slot:
                    if streams:
                        self._begin_stream()
                    for number, word in enumerate(words):
                        self._pause(model.eval_s / len(words))
                        if streams:
                            self._send_line(part(f" {word}" if number else word))
        # Sent when the runner is free: whoever reads the end may look at /api/ps at once.
        if not asked:
            self._send_json(part("", done_reason="load"))
            return
        last = {
            "done_reason": "length" if len(words) < len(_ANSWER) else "stop",
            **clock.metrics(asked, tokens=len(words)),
        }
        if streams:
            self._send_line(part("", **last))
            self._end_stream()
        else:
            self._send_json(part(" ".join(words), **last))

    def _embed(self, body: Body) -> None:
        clock, name, sent = _Clock(), _name_in(body), body.get("options") or {}
        lease_s = lease_of(body.get("keep_alive"))
        texts = body.get("input") or []
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, "invalid input type")
        advice = f'model "{name}" not found, try pulling it first'
        model = self._found(name, advice if name else "model '' not found")
        _refuse_remote(model)
        options = runner_options(sent, model, self._emulator.default_num_ctx)
        answer: Body = {"model": name, "embeddings": [_vector(text) for text in texts]}
        with self._emulator.scheduler.runner(model, options, lease_s, self._gone) as runner:
            clock.loaded()
            if texts:
                if "embedding" not in model.capabilities:
                    advice = "Start it with `--embeddings`"
                    raise Refusal(501, f"This server does not support embeddings. {advice}")
                with runner.slot:
                    self._pause(model.eval_s)
                answer |= clock.metrics(texts)
        self._send_json(answer)

    def _found(self, name: str, problem: str) -> ScriptedModel:
        model = self._emulator.store.find(name) if name else None
        if model is None or not model.present:
            raise Refusal(404, problem)
        return model

    def _gone(self) -> bool:
        """Whether the client has closed its connection."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _pause(self, seconds: float) -> None:
        """Sleep, but not longer than the client stays.

        Raises:
            ClientGone: it has left.
        """
        until = time.monotonic() + seconds
        while not self._gone():
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.01))
        raise ClientGone

    def _send_json(self, data: object, status: int = 200) -> None:
        self._send(status, "application/json; charset=utf-8", _write_json(data))

    def _send(self, status: int, content_type: str, content: bytes) -> None:
        self._send_head(status, content_type, f"Content-Length: {len(content)}", content)

    def _begin_stream(self) -> None:
        self._send_head(200, "application/x-ndjson", "Transfer-Encoding: chunked")

    def _send_line(self, data: object) -> None:
        line = _write_json(data) + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

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


_ROUTES: dict[str, tuple[str, Callable[[Handler, Body], None]]] = {
    "/": ("GET", Handler._root),
    "/api/version": ("GET", Handler._version),
    "/api/tags": ("GET", Handler._tags),
    "/api/ps": ("GET", Handler._ps),
    "/api/show": ("POST", Handler._show),
    "/api/copy": ("POST", Handler._copy),
    "/api/pull": ("POST", Handler._pull),
    "/api/generate": ("POST", Handler._generate),
    "/api/chat": ("POST", Handler._chat),
    "/api/embed": ("POST", Handler._embed),
}


class _Clock:
    """The times of one request, in Go's unit: whole nanoseconds."""

    def __init__(self) -> None:
        self._arrived = self._loaded = time.perf_counter_ns()

    def loaded(self) -> None:
        self._loaded = time.perf_counter_ns()

    def metrics(self, texts: Sequence[str], tokens: int = 0) -> dict[str, int]:
        now = time.perf_counter_ns()
        metrics = {
            "total_duration": now - self._arrived,
            "load_duration": self._loaded - self._arrived,
            "prompt_eval_count": sum(1 + len(text.split()) for text in texts),
        }
        if tokens:
            # The prompt is played as if it were one more token.
            each = (now - self._loaded) // (tokens + 1)
            metrics |= {
                "prompt_eval_duration": each,
                "eval_count": tokens,
                "eval_duration": each * tokens,
            }
        return metrics


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


def _write_json(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _name_in(body: Body) -> str:
    return str(body.get("model") or body.get("name") or "")


def _entry(model: ScriptedModel) -> Body:
    names = {"name": model.name, "model": model.name}
    return {**names, "size": model.size, "digest": model.digest, "details": _DETAILS}


def _origin(model: ScriptedModel) -> Body:
    remote = {"remote_host": model.remote_host, "remote_model": model.name}
    return {"modified_at": _timestamp(_STARTED_NS), **(remote if model.remote_host else {})}


def _refuse_remote(model: ScriptedModel) -> None:
    if model.remote_host:
        raise Refusal(502, f"an emulator cannot reach {model.remote_host}")


def _timestamp(ns: int) -> str:
    """Write a time as Go does, with nine digits after the seconds."""
    seconds, fraction = divmod(ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def _vector(text: str) -> list[float]:
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:8]]
