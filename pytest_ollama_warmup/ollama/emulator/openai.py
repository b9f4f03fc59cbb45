"""OpenAI's API under ``/v1``, as an emulator answers it.

It knows neither runner options nor leases: a model runs with the server's own.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.emulator.http import Body, Connection, name_in, write_json
from pytest_ollama_warmup.ollama.emulator.native import (
    NO_EMBEDDINGS,
    nothing,
    refuse_unable,
    spoken,
    texts_of,
    tokens_in,
    vector,
)
from pytest_ollama_warmup.ollama.emulator.scheduler import runner_options
from pytest_ollama_warmup.ollama.emulator.script import Refusal

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.emulator.http import Answer
    from pytest_ollama_warmup.ollama.emulator.script import ScriptedModel

_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def _refusing_as_openai(answer: Answer) -> Answer:
    """Wrap the errors of *answer* as that API has them."""

    def wrapped(connection: Connection, body: Body) -> None:
        try:
            answer(connection, body)
        except Refusal as refusal:
            kind = _ERROR_TYPES.get(refusal.status, "api_error")
            error = {"message": refusal.text, "type": kind, "param": None, "code": None}
            connection.send_json({"error": error}, refusal.status)

    return wrapped


@_refusing_as_openai
def _chat_completions(connection: Connection, body: Body) -> None:
    messages, name = body.get("messages"), name_in(body)
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    model = _found(connection, name)
    refuse_unable(model, name, "chat")
    streams, limit = bool(body.get("stream")), body.get("max_tokens")
    words: list[str] = []
    with connection.emulator.scheduler.runner(
        model, _options(connection, model), None, connection.gone
    ) as runner:
        begin = partial(connection.begin_stream, "text/event-stream") if streams else nothing
        for word in spoken(connection, runner, limit, begin):
            if streams:
                delta = {"role": "assistant", "content": f" {word}" if words else word}
                _send_event(connection, {**_made(name, "chat.completion.chunk", delta=delta)})
            words.append(word)
    reason = "length" if isinstance(limit, int) and len(words) == limit else "stop"
    if streams:
        chunk = _made(name, "chat.completion.chunk", delta={}, finish_reason=reason)
        _send_event(connection, chunk)
        connection.send_part(b"data: [DONE]\n\n")
        connection.end_stream()
        return
    message = {"role": "assistant", "content": " ".join(words)}
    asked = tokens_in([str(one.get("content")) for one in messages])
    usage = {
        "prompt_tokens": asked,
        "completion_tokens": len(words),
        "total_tokens": asked + len(words),
    }
    made = _made(name, "chat.completion", message=message, finish_reason=reason)
    connection.send_json({**made, "usage": usage})


@_refusing_as_openai
def _embeddings(connection: Connection, body: Body) -> None:
    name, texts = name_in(body), texts_of(body)
    if not texts:
        raise Refusal(400, "invalid input")
    model = _found(connection, name)
    with connection.emulator.scheduler.runner(
        model, _options(connection, model), None, connection.gone
    ) as runner:
        if "embedding" not in model.capabilities:
            raise Refusal(501, NO_EMBEDDINGS)
        with runner.slot:
            connection.pause(model.eval_s)
    data = [
        {"object": "embedding", "embedding": vector(text), "index": index}
        for index, text in enumerate(texts)
    ]
    count = tokens_in(texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    connection.send_json({"object": "list", "data": data, "model": name, "usage": usage})


OPENAI: dict[str, tuple[str, Answer]] = {
    "/v1/chat/completions": ("POST", _chat_completions),
    "/v1/embeddings": ("POST", _embeddings),
}


def _found(connection: Connection, name: str) -> ScriptedModel:
    return connection.found(name, f"model '{name}' not found")


def _options(connection: Connection, model: ScriptedModel) -> dict[str, int | bool | None]:
    return runner_options({}, model, connection.emulator.default_num_ctx)


def _made(name: str, kind: str, **choice: object) -> Body:
    choices = [{"index": 0, "finish_reason": None, **choice}]
    head = {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": name}
    return {**head, "system_fingerprint": "fp_emulator", "choices": choices}


def _send_event(connection: Connection, data: Body) -> None:
    connection.send_part(b"data: " + write_json(data) + b"\n\n")
