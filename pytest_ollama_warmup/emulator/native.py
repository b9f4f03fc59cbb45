"""Ollama's own API, as an emulator answers it: each path that pulling and warming need."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ollama_warmup.emulator.http import Connection, Route, name_in
from pytest_ollama_warmup.emulator.scheduler import keep_alive_of, runner_options
from pytest_ollama_warmup.emulator.script import Refusal, ScriptedModel, parse_name
from pytest_ollama_warmup.ollama.names import ModelName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_ollama_warmup.emulator.scheduler import Runner
    from pytest_ollama_warmup.emulator.state import Body

_DETAILS = {"format": "gguf", "family": "emulated", "families": ["emulated"]}
_COPY = ("source", "destination")
_STARTED_NS = time.time_ns()


def _root(connection: Connection, body: Body) -> None:
    connection.send(200, "text/plain; charset=utf-8", b"Ollama is running")


def _version(connection: Connection, body: Body) -> None:
    connection.send_json({"version": connection.state.version})


def _tags(connection: Connection, body: Body) -> None:
    models = [
        {**_entry(model), **_abilities(connection, model), **_origin(model)}
        for model in connection.state.store.present()
    ]
    connection.send_json({"models": models})


def _ps(connection: Connection, body: Body) -> None:
    models = [
        {
            **_entry(runner.model),
            "expires_at": timestamp(
                runner.expires_ns or time.time_ns() + int(runner.keep_alive_s * 1e9)
            ),
            "size_vram": 0,
            "context_length": runner.options["num_ctx"],
        }
        for runner in connection.state.scheduler.runners_in_memory()
    ]
    if (edited := connection.state.edit_ps(models)) is None:
        raise Refusal(404, "404 page not found")
    connection.send_json({"models": edited})


def _show(connection: Connection, body: Body) -> None:
    name = name_in(body)
    if not name:
        raise Refusal(400, "model is required")
    model = connection.found(name, f"model '{parse_name(name).short}' not found")
    info = {
        "modelfile": f"# FROM {model.name}\n\nFROM /blobs/sha256-{model.weights}\n",
        "template": "{{ .Prompt }}",
        "details": _DETAILS,
        "model_info": {
            "general.architecture": "emulated",
            "emulated.context_length": model.context_length,
        },
        "tensors": [],
        **({"parameters": f"{'num_ctx':<30} {model.num_ctx}"} if model.num_ctx else {}),
    }
    connection.send_json(info | _abilities(connection, model) | _origin(model))


def _copy(connection: Connection, body: Body) -> None:
    source, destination = (_named(str(body.get(part, "")), part) for part in _COPY)
    model = connection.found(source, f'model "{body["source"]}" not found')
    connection.state.store.add(replace(model, name=destination))
    connection.send(200, "", b"")


def _delete(connection: Connection, body: Body) -> None:
    name = name_in(body)
    if not name:
        raise Refusal(400, "model is required")
    model = connection.found(_named(name, "name"), f"model '{name}' not found")
    # What is loaded of it stays until its keep-alive ends.
    connection.state.store.delete(model)
    connection.send(200, "", b"")


def _pull(connection: Connection, body: Body) -> None:
    store = connection.state.store
    with contextlib.closing(store.pull(store.find(name_in(body)), connection.pause)) as lines:
        if body.get("stream") is False:
            # A failure has a status here: nothing was sent yet.
            *_, last = lines
            connection.send_json(last)
            return
        connection.begin_stream()
        for line in lines:
            connection.send_line(line)
        connection.end_stream()


def _generate(connection: Connection, body: Body) -> None:
    prompt = body.get("prompt")
    _complete(connection, body, "generate", [prompt] if prompt else [])


def _chat(connection: Connection, body: Body) -> None:
    if not name_in(body):
        raise Refusal(400, "model is required")
    messages = body.get("messages") or []
    _complete(connection, body, "chat", [str(message.get("content")) for message in messages])


def _complete(connection: Connection, body: Body, verb: str, asked: Sequence[str]) -> None:
    """Generate; with nothing *asked*, only load, or unload where the keep-alive is 0."""
    clock, name, sent = _Clock(), name_in(body), body.get("options") or {}
    keep_alive_s = keep_alive_of(body.get("keep_alive"))
    model = connection.found(name, f"model '{name}' not found")
    scheduler = connection.state.scheduler

    def part(text: str, **last: object) -> Body:
        content: object = {"role": "assistant", "content": text} if verb == "chat" else text
        key = "message" if verb == "chat" else "response"
        made = {"model": name, "created_at": timestamp(time.time_ns()), key: content}
        return {**made, "done": bool(last), **last}

    if not asked and keep_alive_s == 0:
        scheduler.unload(model)
        connection.send_json(part("", done_reason="unload"))
        return
    refuse_unable(model, name, verb)
    if body.get("think") and "thinking" not in model.capabilities:
        raise Refusal(400, f'"{name}" does not support thinking')
    options = runner_options(sent, model, connection.state.default_num_ctx, shift=body.get("shift"))
    streams, said = body.get("stream") is not False, list[str]()

    def hear(word: str) -> None:
        if streams:
            if not said:
                connection.begin_stream()
            connection.send_line(part(word))
        said.append(word)

    with scheduler.runner(model, options, keep_alive_s, connection.gone) as runner:
        clock.loaded()
        reason = speak(connection, runner, sent.get("num_predict"), hear) if asked else "load"
    # Sent when the runner is free: whoever reads the end may look at /api/ps at once.
    if not asked:
        connection.send_json(part("", done_reason=reason))
        return
    last = {"done_reason": reason, **clock.metrics(asked, tokens=len(said))}
    if streams:
        connection.send_line(part("", **last))
        connection.end_stream()
    else:
        connection.send_json(part("".join(said), **last))


def speak(
    connection: Connection, runner: Runner, limit: object, hear: Callable[[str], object]
) -> str:
    """Say an answer word by word, *limit* at most where it is a limit; returns why it ended.

    Raises:
        Refusal: 500, the runner's process has ended.
        ClientGone: nobody hears it any more.
    """
    answer = runner.model.answer.split(" ")
    words = answer[:limit] if isinstance(limit, int) and limit > 0 else answer
    with runner.slot:
        runner.check()
        for number, word in enumerate(words):
            hear(f" {word}" if number else word)
            connection.pause(runner.model.eval_s / len(words), runner.check)
    return "length" if len(words) < len(answer) else "stop"


def _embed(connection: Connection, body: Body) -> None:
    keep_alive_s = keep_alive_of(body.get("keep_alive"))
    vectors, metrics = embed(
        connection, name_in(body), body.get("input") or [], body.get("options") or {}, keep_alive_s
    )
    connection.send_json({"model": name_in(body), "embeddings": vectors, **metrics})


def embed(
    connection: Connection,
    name: str,
    asked: object,
    options: Mapping[str, object],
    keep_alive_s: float | None,
) -> tuple[list[list[float]], dict[str, int]]:
    """Return vectors and times; with nothing *asked*, only load, whatever the model can do.

    Raises:
        Refusal: 400, 404 and 501, it is no text, there is no such model, it does not embed.
    """
    clock, texts = _Clock(), [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "invalid input type")
    advice = f'model "{name}" not found, try pulling it first'
    model = connection.found(name, advice if name else "model '' not found")
    _refuse_remote(model)
    wanted = runner_options(options, model, connection.state.default_num_ctx)
    with connection.state.scheduler.runner(model, wanted, keep_alive_s, connection.gone) as runner:
        clock.loaded()
        if not texts:
            return [], {}
        if "embedding" not in model.capabilities:
            advice = "Start it with `--embeddings`"
            raise Refusal(501, f"This server does not support embeddings. {advice}")
        with runner.slot:
            connection.pause(model.eval_s, runner.check)
    return [_vector(text) for text in texts], clock.metrics(texts)


def _refuse(connection: Connection, refusal: Refusal) -> None:
    if connection.streaming:
        # Its status is sent already.
        connection.send_line({"error": refusal.text})
        connection.end_stream()
    else:
        connection.send_json({"error": refusal.text}, refusal.status)


NATIVE: dict[str, Route] = {
    "/": Route("GET", _root, _refuse),
    "/api/version": Route("GET", _version, _refuse),
    "/api/tags": Route("GET", _tags, _refuse),
    "/api/ps": Route("GET", _ps, _refuse),
    "/api/show": Route("POST", _show, _refuse),
    "/api/copy": Route("POST", _copy, _refuse),
    "/api/delete": Route("DELETE", _delete, _refuse),
    "/api/pull": Route("POST", _pull, _refuse),
    "/api/generate": Route("POST", _generate, _refuse),
    "/api/chat": Route("POST", _chat, _refuse),
    "/api/embed": Route("POST", _embed, _refuse),
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
            "prompt_eval_count": tokens_in(texts),
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


def _named(name: str, what: str) -> str:
    try:
        return ModelName.parse(name).short
    except ValueError:
        raise Refusal(400, f'{what} "{name}" is invalid') from None


def tokens_in(texts: Sequence[str]) -> int:
    """Return how many tokens *texts* have: a word is one."""
    return sum(1 + len(text.split()) for text in texts)


def _vector(text: str) -> list[float]:
    """Return the embedding of *text*."""
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:8]]


def timestamp(ns: int) -> str:
    """Write a time as Go does, with nine digits after the seconds."""
    seconds, fraction = divmod(ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def refuse_unable(model: ScriptedModel, name: str, verb: str) -> None:
    """Refuse to complete a text with a model that cannot.

    Raises:
        Refusal: 400, it embeds, or is damaged; 502, it runs elsewhere.
    """
    _refuse_remote(model)
    if model.damaged or "completion" not in model.capabilities:
        raise Refusal(400, f'"{name}" does not support {verb}')


def _refuse_remote(model: ScriptedModel) -> None:
    if model.remote_host:
        raise Refusal(502, f"an emulator cannot reach {model.remote_host}")


def _abilities(connection: Connection, model: ScriptedModel) -> Body:
    tells = connection.state.tells_capabilities
    return {"capabilities": list(model.capabilities)} if tells else {}


def _entry(model: ScriptedModel) -> Body:
    names = {"name": model.name, "model": model.name}
    return {**names, "size": model.size, "digest": model.digest, "details": _DETAILS}


def _origin(model: ScriptedModel) -> Body:
    remote = {"remote_host": model.remote_host, "remote_model": model.name}
    return {"modified_at": timestamp(_STARTED_NS), **(remote if model.remote_host else {})}
