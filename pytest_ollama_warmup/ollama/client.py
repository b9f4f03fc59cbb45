"""The HTTP API of an Ollama server, as far as pulling and warming need it."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.errors import (
    AccessDenied,
    ApiError,
    NotOllama,
    ProxyAnswered,
    ServerUnreachable,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.causes import api_error
from pytest_ollama_warmup.ollama.limits import ANSWER_BYTES, LARGE_BYTES
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.proxy import proxy_for
from pytest_ollama_warmup.ollama.requests import (
    GATEWAY_WAITED_S,
    headers,
    key_state,
    load_request,
    secrets_of,
)
from pytest_ollama_warmup.ollama.responses import (
    UNKNOWN,
    LoadedModel,
    LocalModel,
    ModelInfo,
    PullProgress,
    find,
    loaded_in,
    models_in,
    parse,
)
from pytest_ollama_warmup.ollama.transport import Answer, Question, Transport
from pytest_ollama_warmup.text import Secret, clean, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from pytest_ollama_warmup.errors import WarmupError
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.requests import Header, LoadKind

# What a gateway answers when the server behind it does not; from 520 on Cloudflare.
_GATEWAYS = {502, 503, 504, *range(520, 528)}


class Client:
    """One server; one client per process and host, made when first needed.

    All methods raise ServerError when there is no server to talk to, and ApiError when it answers
    with an error. Safe for use in several threads.
    """

    def __init__(self, host: Host, api_key: str = "", extra: Sequence[Header] = ()) -> None:
        self.host = host
        api_key = Secret(api_key)
        self._secrets = [Secret(secret) for secret in secrets_of(host, api_key, extra)]
        self._key_state = key_state(host, api_key, extra)
        self._transport = Transport(host, headers(host, api_key, extra))
        # Made once: it is sent twice for each test, and to make it costs a quarter of the look.
        self._ps = self._transport.question("GET", "/api/ps", 5.0)

    @property
    def aborted(self) -> bool:
        """Whether the run has ended, and with it all requests."""
        return self._transport.aborted

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def abort(self) -> None:
        """Cut all connections, also those that another thread is waiting on, and make no more.

        The server ends a pull or a load when its client has gone; a thread that would try again
        gets an Aborted instead.
        """
        self._transport.abort()

    def wait_until_ready(
        self,
        limit_s: float,
        on_wait: Callable[[str, float], None] = lambda cause, waited_s: None,
        *,
        refused_s: float | None = None,
        clock: Callable[[], float] = clock.monotonic,
        sleep: Callable[[float], object] = clock.sleep,
    ) -> str:
        """Wait until ``GET /api/version`` answers, for at most *limit_s* seconds; return it.

        A socket that listens proves nothing: the server binds it before it looks for GPUs. While
        the port refuses, the wait ends after *refused_s* seconds, if that is less.
        *on_wait* is called after each attempt that failed with the cause and the seconds so far.

        Raises:
            ServerUnreachable: *limit_s* is over.
            NotOllama, AccessDenied, TlsFailed: waiting would not help.
        """
        begin, pause = clock(), 0.05
        while True:
            waited = clock() - begin
            try:
                return self.version(timeout_s=min(5.0, max(0.5, limit_s - waited)))
            except ServerUnreachable as exc:
                waited = clock() - begin
                on_wait(exc.why, waited)
                limit = limit_s
                if refused_s is not None and exc.cause == "connection refused":
                    limit = min(limit_s, refused_s)
                if waited >= limit:
                    raise self._transport.unreachable(exc.cause, limit, exc.words) from exc
            # The last attempt is made when the time is over: it may be just then that it answers.
            sleep(min(pause, limit - waited))
            pause = min(0.5, pause * 1.5)

    def version(self, timeout_s: float = 5.0) -> str:
        """Return the server's version; a server built from source says ``0.0.0``."""
        question = self._transport.question("GET", "/api/version", timeout_s)
        answer = self._transport.ask(question, timeout_s, ANSWER_BYTES)
        kind = answer.headers.get("content-type", "").partition(";")[0]
        self._refuse_proxy(answer)
        if answer.status in (401, 403):
            raise self._denied(answer.status, self._words(answer.content))
        if answer.status >= 500:
            raise self._transport.unreachable("no server", words=f"HTTP {answer.status}")
        data = parse(answer.content)
        if answer.status == 200 and isinstance(data, dict) and "version" in data:
            return self._clean(data["version"], 40)
        text = answer.text
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.S | re.I)
        excerpt = self._clean(title.group(1) if title else text, 60)
        seen = " ".join(part for part in (str(answer.status), clean(kind, 60)) if part)
        raise NotOllama(
            self.host.url,
            self.host.source,
            f'{seen} "{excerpt}"' if excerpt else seen,
            self.host.note,
        )

    def _refuse_proxy(self, answer: Answer) -> None:
        """Tell apart what a proxy says by itself, which is no JSON.

        Raises:
            ServerUnreachable: it reaches nothing, as yet.
            ProxyAnswered: waiting would not help.
        """
        status = answer.status
        if status == 200 or parse(answer.content) is not None:
            return
        if proxy := proxy_for(self.host):
            if status in (502, 503, 504):
                words = f"HTTP {status} from the proxy of {proxy}"
                raise self._transport.unreachable("proxy", words=words)
            raise ProxyAnswered(self.host.url, self.host.source, status, proxy)

    def show(self, name: str, *, limit_s: float = 60.0) -> ModelInfo | None:
        """Return what the server knows of a model; None when it does not have it.

        A server or proxy without this path says 404 too. What ``/api/tags`` lists is there then,
        and nothing more is known of it.
        """
        try:
            data = self._post("/api/show", {"model": name}, limit_s)
        except ApiError as exc:
            if exc.cause == "unknown model":
                return None
            if exc.status not in (404, 405, 501):
                raise
            model = find(self.local_models(limit_s=limit_s), ModelName.parse(name).key)
            return None if model is None else UNKNOWN
        return ModelInfo.read(data)

    def pull(
        self, name: str, *, insecure: bool = False, silence_s: float
    ) -> Generator[PullProgress, None, None]:
        """Download a model; yields the server's lines as they come, the last is ``success``.

        The server is silent while it fetches the manifest and verifies digests: *silence_s* is how
        long no line at all may come.

        Raises:
            ApiError: an error line, which arrives inside HTTP 200.
        """
        body = {"model": name, "stream": True, **({"insecure": True} if insecure else {})}
        question = self._transport.question("POST", "/api/pull", silence_s, body)
        status = ""
        with closing(self._transport.stream(question, silence_s)) as lines:
            for line in lines:
                if isinstance(line, Answer):
                    raise self._error("/api/pull", line)
                data = parse(line)
                if not isinstance(data, dict):
                    said = self._clean(line.decode(errors="replace"))
                    raise api_error(question.what, 200, f"not JSON: {said}")
                if "error" in data:
                    raise api_error(question.what, 200, self._clean(data["error"]))
                progress = PullProgress.read(data)
                if progress.status != status:
                    status = progress.status
                    LOG.debug("%s: %s", name, status)
                yield progress

    def load(
        self,
        name: str,
        kind: LoadKind,
        *,
        prompt: str,
        options: Mapping[str, object],
        keep_alive: float | None = None,
        limit_s: float,
    ) -> None:
        """Load a model; with a *prompt*, also have it answer in five tokens.

        Nothing is read for up to *limit_s* seconds: a client that gives up aborts the load
        (v0.33, ``llm/llama_server.go``).
        """
        path, body = load_request(name, kind, prompt=prompt, options=options, keep_alive=keep_alive)
        self._post(path, body, limit_s, LARGE_BYTES)

    def warm_up(
        self,
        name: str,
        request: Mapping[str, object],
        *,
        options: Mapping[str, object],
        limit_s: float,
    ) -> None:
        """Load a model by a request of somebody else's making; read *limit_s* as in load.

        It goes to the endpoint that its fields are for. Options that it lacks are *options*, and
        five tokens: without a limit some models generate for minutes.
        """
        own = request.get("options")
        body = {**request, "model": name, "stream": False}
        body["options"] = {**options, "num_predict": 5, **(own if isinstance(own, dict) else {})}
        path = "generate"
        if "messages" in request:
            path = "chat"
        elif "input" in request:
            path = "embed"
            # What answers is one object, and knows no stream.
            del body["stream"]
        self._post(f"/api/{path}", body, limit_s, LARGE_BYTES)

    def unload(self, name: str, *, limit_s: float = 5.0) -> None:
        """Take a model out of memory, also one that embeds; nothing happens if it is not there."""
        body = {"model": name, "keep_alive": 0, "stream": False}
        self._post("/api/generate", body, limit_s)

    def loaded_models(self) -> list[LoadedModel]:
        """Return the models in memory, keep-alives measured by the server's own clock."""
        models, headers = self._models(self._ps, 5.0)
        return loaded_in(models, headers.get("date"))

    def local_models(self, *, limit_s: float = 5.0) -> list[LocalModel]:
        """Return the models on the server's disk, in the cloud as far as it knows them."""
        question = self._transport.question("GET", "/api/tags", limit_s)
        return [LocalModel.read(model) for model in self._models(question, limit_s, LARGE_BYTES)[0]]

    def _models(
        self, question: Question, limit_s: float, most: int = ANSWER_BYTES
    ) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
        """Return a list of models, and the headers of the answer."""
        answer = self._transport.ask(question, limit_s, most)
        return models_in(self._data(question.http.url.path, answer)), answer.headers

    def _post(
        self, path: str, body: Mapping[str, object], limit_s: float, most: int = ANSWER_BYTES
    ) -> dict[str, Any]:
        begin = clock.monotonic()
        question = self._transport.question("POST", path, limit_s, body)
        answer = self._transport.ask(question, limit_s, most)
        return self._data(path, answer, clock.monotonic() - begin)

    def _data(self, path: str, answer: Answer, after_s: float = 0.0) -> dict[str, Any]:
        data = parse(answer.content)
        if answer.status != 200 or not isinstance(data, dict) or "error" in data:
            self._refuse_proxy(answer)
            raise self._error(path, answer, after_s)
        return data

    def _error(self, path: str, answer: Answer, after_s: float = 0.0) -> WarmupError:
        status, words = answer.status, self._words(answer.content)
        if status in (401, 403):
            return self._denied(status, words)
        if status in _GATEWAYS and not isinstance(parse(answer.content), dict):
            # A page of somebody between us and the server is none of the server's words.
            words = f"HTTP {status} from a gateway before the server"
            if after_s >= GATEWAY_WAITED_S:
                words += f", after {seconds(after_s)}"
            return ApiError(path, status, words, "gateway", after_s)
        return api_error(path, status, words or f"HTTP {status} without a word")

    def _words(self, content: bytes) -> str:
        data = parse(content)
        if isinstance(data, dict):
            return self._clean(data.get("error", data))
        text = content.decode(errors="replace")
        # Somebody between us and the server says it: none of its words.
        return "a web page" if text.lstrip().startswith("<") else self._clean(text)

    def _clean(self, text: object, limit: int = 500) -> str:
        # Some gateways echo the key that they refuse. It is hidden before the text is cut, which
        # would leave a part of it.
        shown = str(text)
        for secret in self._secrets:
            shown = shown.replace(secret, "***")
        return clean(shown, limit)

    def _denied(self, status: int, words: str) -> AccessDenied:
        return AccessDenied(self.host.url, self.host.source, status, words, self._key_state)
