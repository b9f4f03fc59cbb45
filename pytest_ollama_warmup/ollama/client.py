"""The HTTP API of an Ollama server, as far as pulling and warming need it."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx

from pytest_ollama_warmup.errors import (
    Aborted,
    AccessDenied,
    ApiError,
    GatewayAnswered,
    NotOllama,
    ProxyAnswered,
    ServerError,
    ServerUnreachable,
    TlsFailed,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.limits import (
    ANSWER_BYTES,
    LARGE_BYTES,
    LINE_BYTES,
    Limit,
    TooLong,
    TooSlow,
)
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.proxy import proxy_for
from pytest_ollama_warmup.ollama.requests import headers, key_state, load_request, secrets_of
from pytest_ollama_warmup.ollama.responses import (
    UNKNOWN,
    ModelInfo,
    PullProgress,
    Resident,
    Stored,
    find,
    is_missing_model,
    models_in,
    parse,
    residents_in,
)
from pytest_ollama_warmup.ollama.tls import named_by, trust
from pytest_ollama_warmup.text import Secret, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

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
        self._secrets = [Secret(one) for one in secrets_of(host, api_key, extra)]
        self._key_state = key_state(host, api_key, extra)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        # A set must not grow while abort() goes through it.
        self._sockets_lock = threading.Lock()
        # What each thread reads, in httpx too, is an answer to its own request.
        self._reading = threading.local()
        self.aborted = False
        try:
            self._http = httpx.Client(
                base_url=host.url,
                headers=headers(host, api_key, extra),
                verify=trust(host.url),
                # httpx would send even loopback addresses to HTTP_PROXY.
                trust_env=not host.loopback,
                timeout=httpx.Timeout(5.0, pool=None),
                limits=httpx.Limits(max_connections=None),
            )
        except OSError as exc:
            words = clean(exc.strerror or exc, 200)
            cause = f"the certificates of {named_by()} cannot be read ({words})"
            raise TlsFailed(host.url, host.source, cause) from exc
        # A SOCKS proxy without its library, a proxy address that is none.
        except (ImportError, ValueError, httpx.InvalidURL) as exc:
            cause = f"a proxy variable cannot be used ({clean(exc, 200)})"
            raise ServerUnreachable(host.url, host.source, cause, 0.0) from exc
        # Held: a module of the suite may put something else in its place.
        self._send, self._build = self._http.send, self._http.build_request
        # Made once: it is sent twice for each test, and to make it costs a quarter of the look.
        self._ps = self._request("GET", "/api/ps", 5.0)

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def abort(self) -> None:
        """Cut all connections, also those that another thread is waiting on, and make no more.

        The server ends a pull or a load when its client has gone; a thread that would try again
        gets an Aborted instead.
        """
        self.aborted = True
        with self._sockets_lock:
            sockets = list(self._sockets)
        for sock in sockets:
            try:
                # close() alone would not wake a thread that waits in recv().
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

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
                on_wait(exc.cause, waited)
                limit = limit_s
                if refused_s is not None and exc.cause == "connection refused":
                    limit = min(limit_s, refused_s)
                if waited >= limit:
                    raise self._unreachable(exc.cause, limit) from exc
            # The last attempt is made when the time is over: it may be just then that it answers.
            sleep(min(pause, limit - waited))
            pause = min(0.5, pause * 1.5)

    def version(self, timeout_s: float = 5.0) -> str:
        """Return the server's version; a server built from source says ``0.0.0``."""
        response = self._answer(self._request("GET", "/api/version", timeout_s), timeout_s)
        kind = response.headers.get("content-type", "").partition(";")[0]
        self._refuse_proxy(response)
        if response.status_code in (401, 403):
            raise self._denied(response.status_code, self._words(response.content))
        if response.status_code >= 500:
            raise self._unreachable(f"HTTP {response.status_code}")
        data = parse(response.content)
        if response.status_code == 200 and isinstance(data, dict) and "version" in data:
            return self._clean(data["version"], 40)
        text = response.text
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.S | re.I)
        excerpt = self._clean(title.group(1) if title else text, 60)
        seen = " ".join(part for part in (str(response.status_code), clean(kind, 60)) if part)
        raise NotOllama(
            self.host.url,
            self.host.source,
            f'{seen} "{excerpt}"' if excerpt else seen,
            self.host.note,
        )

    def _refuse_proxy(self, response: httpx.Response) -> None:
        """Tell apart what a proxy says by itself, which is no JSON.

        Raises:
            ServerUnreachable: it reaches nothing, as yet.
            ProxyAnswered: waiting would not help.
        """
        status = response.status_code
        if status == 200 or parse(response.content) is not None:
            return
        if proxy := proxy_for(self.host):
            if status in (502, 503, 504):
                raise self._unreachable(f"HTTP {status} from the proxy of {proxy}")
            raise ProxyAnswered(self.host.url, self.host.source, status, proxy)

    def show(self, name: str, *, limit_s: float = 60.0) -> ModelInfo | None:
        """Return what the server knows of a model; None when it does not have it.

        A server or proxy without this path says 404 too. What ``/api/tags`` lists is there then,
        and nothing more is known of it.
        """
        try:
            data = self._post("/api/show", {"model": name}, limit_s)
        except ApiError as exc:
            if exc.status == 404 and is_missing_model(exc.words):
                return None
            if exc.status not in (404, 405, 501):
                raise
            found = find(self.stored(limit_s=limit_s), ModelName.parse(name).key)
            return None if found is None else UNKNOWN
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
        request, limit = self._request("POST", "/api/pull", silence_s, body), Limit(silence_s)
        with (
            self._exchange("POST /api/pull", limit) as begin_again,
            closing(_plain(self._send(request, stream=True))) as response,
        ):
            if response.status_code != 200:
                raise self._error("/api/pull", response.status_code, response.read())
            limit.most = LINE_BYTES
            for line in _lines(response):
                data = parse(line)
                if not isinstance(data, dict):
                    said = self._clean(line.decode(errors="replace"))
                    raise ApiError("POST /api/pull", 200, f"not JSON: {said}")
                if "error" in data:
                    raise ApiError("POST /api/pull", 200, self._clean(data["error"]))
                yield PullProgress.read(data)
                # Also for this thread: it may have asked something else meanwhile.
                begin_again()

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
        """Make a model resident; with a *prompt*, also have it answer in five tokens.

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
        """Make a model resident by a request of somebody else's making; read *limit_s* as in load.

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

    def resident(self) -> list[Resident]:
        """Return the models in memory, leases measured by the server's own clock."""
        models, headers = self._models(self._ps, 5.0)
        return residents_in(models, headers.get("date"))

    def stored(self, *, limit_s: float = 5.0) -> list[Stored]:
        """Return the models on the server's disk, in the cloud as far as it knows them."""
        request = self._request("GET", "/api/tags", limit_s)
        return [Stored.read(one) for one in self._models(request, limit_s, LARGE_BYTES)[0]]

    def _request(
        self, method: str, path: str, limit_s: float, body: Mapping[str, object] | None = None
    ) -> httpx.Request:
        timeout = httpx.Timeout(min(5.0, limit_s), read=limit_s)
        extensions = {"trace": self._trace}
        return self._build(method, path, json=body, timeout=timeout, extensions=extensions)

    def _answer(
        self, request: httpx.Request, limit_s: float, most: int = ANSWER_BYTES
    ) -> httpx.Response:
        """Return the whole answer, which has *limit_s* seconds and *most* bytes to come."""
        what = f"{request.method} {request.url.path}"
        with self._exchange(what, Limit(limit_s, most)):
            response = _plain(self._send(request, stream=True))
            response.read()
        return response

    def _models(
        self, request: httpx.Request, limit_s: float, most: int = ANSWER_BYTES
    ) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
        """Return a list of models, and the headers of the answer."""
        response = self._answer(request, limit_s, most)
        return models_in(self._data(request.url.path, response)), response.headers

    def _post(
        self, path: str, body: Mapping[str, object], limit_s: float, most: int = ANSWER_BYTES
    ) -> dict[str, Any]:
        begin = clock.monotonic()
        request = self._request("POST", path, limit_s, body)
        response = self._answer(request, limit_s, most)
        return self._data(path, response, clock.monotonic() - begin)

    def _data(self, path: str, response: httpx.Response, after_s: float = 0.0) -> dict[str, Any]:
        data = parse(response.content)
        if response.status_code != 200 or not isinstance(data, dict) or "error" in data:
            self._refuse_proxy(response)
            raise self._error(path, response.status_code, response.content, after_s)
        return data

    def _error(self, path: str, status: int, content: bytes, after_s: float = 0.0) -> Exception:
        words = self._words(content)
        if status in (401, 403):
            return self._denied(status, words)
        if status in _GATEWAYS and not isinstance(parse(content), dict):
            # A page of somebody between us and the server is none of the server's words.
            return GatewayAnswered(path, status, after_s)
        return ApiError(path, status, words or f"HTTP {status} without a word")

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

    def _unreachable(self, cause: str, waited_s: float = 0.0) -> ServerUnreachable:
        host = self.host
        return ServerUnreachable(host.url, host.source, cause, waited_s, host.note)

    def _exchange(self, what: str, limit: Limit) -> _Exchange:
        return _Exchange(self, what, limit)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        # TLS wraps the first socket in a second one, and leaves nothing in the first.
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            self._bound(stream)
            sock = stream.get_extra_info("socket")
            if isinstance(sock, socket.socket):
                with self._sockets_lock:
                    self._sockets.add(sock)

    def _bound(self, stream: Any) -> None:
        """Have *stream*, one of httpcore's, read within the limit of the answer that is read.

        httpx limits the time between two bytes only, nothing limits how many answers come before
        the one that counts (``100 Continue``), and here all bytes pass.
        """
        read, reading = stream.read, self._reading

        def bounded(max_bytes: int, timeout: float | None = None) -> bytes:
            limit: Limit | None = getattr(reading, "limit", None)
            if limit is None:
                found: bytes = read(max_bytes, timeout)
                return found
            found = read(max_bytes, limit.left_s())
            limit.count(len(found))
            return found

        stream.read = bounded


class _Exchange:
    """Limit the answer to one request, and turn httpx's exceptions into ours.

    Nothing else is caught: a mocking library's AssertionError must reach the test that caused it.
    """

    def __init__(self, client: Client, what: str, limit: Limit) -> None:
        self._client, self._what, self._limit = client, what, limit

    def __enter__(self) -> Callable[[], None]:
        if self._client.aborted:
            raise self._aborted()
        self.begin_again()
        return self.begin_again

    def begin_again(self) -> None:
        """Give what comes from now on, to this thread, the whole limit."""
        self._limit.renew()
        self._client._reading.limit = self._limit

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self._client._reading.limit = None
        if isinstance(exc, httpx.RequestError | TooSlow | TooLong):
            if self._client.aborted:
                raise self._aborted() from exc
            raise self._as_server_error(exc) from exc

    def _aborted(self) -> Aborted:
        host = self._client.host
        return Aborted(host.url, host.source)

    def _as_server_error(self, exc: Exception) -> ServerError:
        host = self._client.host
        if isinstance(exc, TooLong):
            return self._not_ollama(str(exc))
        if self._limit.came and isinstance(exc, TooSlow | httpx.ReadTimeout):
            return self._client._unreachable("no complete answer")
        causes = list(_chain(exc))
        tls = next((one for one in causes if isinstance(one, ssl.SSLError)), None)
        if tls is not None:
            return TlsFailed(host.url, host.source, _tls_words(tls))
        if type(exc) is httpx.TimeoutException:
            # No time-out of httpx itself, which has a class for each: pytest-httpx says so that it
            # has no answer for us.
            return self._not_ollama(clean(exc, 100))
        garbled = isinstance(exc, httpx.RemoteProtocolError | httpx.DecodingError)
        if garbled and "without sending" not in str(exc):
            return self._not_ollama(f"no HTTP: {clean(exc, 100)}")
        return self._client._unreachable(_cause(exc, causes))

    def _not_ollama(self, seen: str) -> NotOllama:
        host = self._client.host
        return NotOllama(host.url, host.source, seen, host.note, self._what)


def _plain(response: httpx.Response) -> httpx.Response:
    """Return *response*, or what says that it is compressed, which nobody has asked for."""
    kind = response.headers.get("content-encoding", "")
    if kind in ("", "identity"):
        return response
    response.close()
    text = f"compressed ({clean(kind, 60)}), which was not asked for"
    return httpx.Response(response.status_code, text=text, request=response.request)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield the lines of a stream that hold something, as they come."""
    rest = bytearray()
    for part in response.iter_bytes():
        rest += part
        if b"\n" in part:
            *whole, rest = rest.split(b"\n")
            yield from (bytes(line) for line in whole if line.strip())
    if rest.strip():
        yield bytes(rest)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = exc
    # What a mocking library raises again may be its own cause.
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _cause(exc: Exception, causes: list[BaseException]) -> str:
    for one in causes:
        if isinstance(one, socket.gaierror):
            return "host name not found"
        if isinstance(one, ConnectionRefusedError):
            return "connection refused"
    if isinstance(exc, httpx.ConnectTimeout):
        return "no connection"
    if isinstance(exc, TooSlow | httpx.ReadTimeout):
        return "no answer"
    # httpcore joins the attempts on several addresses into one text without the OSError.
    text = clean(exc, 200)
    if "refused" in text.lower() or "All connection attempts failed" in text:
        return "connection refused"
    if isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError):
        return "connection lost"
    return text or type(exc).__name__


def _tls_words(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused ({clean(exc.verify_message, 200)})"
    return clean(exc.reason or exc, 200).replace("_", " ").lower()
