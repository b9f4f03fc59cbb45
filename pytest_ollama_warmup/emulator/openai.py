"""OpenAI's API under ``/v1``, as an emulator answers it.

It knows neither runner options nor keep-alives: a model runs with the server's own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_ollama_warmup.emulator.http import Connection, Route, name_in, write_json
from pytest_ollama_warmup.emulator.native import embed, refuse_unable, speak, tokens_in
from pytest_ollama_warmup.emulator.scheduler import runner_options
from pytest_ollama_warmup.emulator.script import Refusal

if TYPE_CHECKING:
    from pytest_ollama_warmup.emulator.state import Body

_JSON = "application/json"
_CHUNK = "chat.completion.chunk"
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def _chat_completions(connection: Connection, body: Body) -> None:
    messages, name, streams = body.get("messages"), name_in(body), bool(body.get("stream"))
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    if not name:
        raise Refusal(400, "model is required")
    model = connection.found(name, f"model '{name}' not found")
    refuse_unable(model, name, "chat")
    options = runner_options({}, model, connection.state.default_num_ctx)
    said: list[str] = []

    def hear(word: str) -> None:
        if streams:
            if not said:
                connection.begin_stream("text/event-stream")
            delta = {"content": word} if said else {"role": "assistant", "content": word}
            _send_event(connection, _made(name, _CHUNK, delta=delta))
        said.append(word)

    with connection.state.scheduler.runner(model, options, None, connection.gone) as runner:
        reason = speak(connection, runner, body.get("max_tokens"), hear)
    asked = tokens_in([str(turn.get("content")) for turn in messages])
    usage = {
        "prompt_tokens": asked,
        "completion_tokens": len(said),
        "total_tokens": asked + len(said),
    }
    if not streams:
        message = {"role": "assistant", "content": "".join(said)}
        made = _made(name, "chat.completion", message=message, finish_reason=reason)
        _send(connection, {**made, "usage": usage})
        return
    last = _made(name, _CHUNK, delta={}, finish_reason=reason)
    _send_event(connection, last)
    if (body.get("stream_options") or {}).get("include_usage"):
        _send_event(connection, {**last, "choices": [], "usage": usage})
    connection.send_part(b"data: [DONE]\n\n")
    connection.end_stream()


def _embeddings(connection: Connection, body: Body) -> None:
    name, texts = name_in(body), body.get("input")
    if texts is None or texts == []:
        raise Refusal(400, "invalid input")
    # Unlike Ollama's own API, this one embeds a text without a letter.
    vectors, metrics = embed(connection, name, [""] if texts == "" else texts, {}, None)
    data = [
        {"object": "embedding", "embedding": vector, "index": index}
        for index, vector in enumerate(vectors)
    ]
    count = metrics["prompt_eval_count"]
    usage = {"prompt_tokens": count, "total_tokens": count}
    _send(connection, {"object": "list", "data": data, "model": name, "usage": usage})


def _refuse(connection: Connection, refusal: Refusal) -> None:
    if connection.streaming:
        # The server reads the error as an answer without a word, and says no more.
        _send_event(connection, _made("", _CHUNK, delta={"content": ""}))
        connection.end_stream()
        return
    kind = _ERROR_TYPES.get(refusal.status, "api_error")
    error = {"message": refusal.text, "type": kind, "param": None, "code": None}
    _send(connection, {"error": error}, refusal.status)


OPENAI: dict[str, Route] = {
    "/v1/chat/completions": Route("POST", _chat_completions, _refuse),
    "/v1/embeddings": Route("POST", _embeddings, _refuse),
}


def _made(name: str, kind: str, **choice: object) -> Body:
    choices = [{"index": 0, "finish_reason": None, **choice}]
    head = {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": name}
    return {**head, "system_fingerprint": "fp_ollama", "choices": choices}


def _send(connection: Connection, data: Body, status: int = 200) -> None:
    connection.send(status, "application/json", write_json(data) + b"\n")


def _send_event(connection: Connection, data: Body) -> None:
    connection.send_part(b"data: " + write_json(data) + b"\n\n")
