"""Requests to one server over httpx: limited, cut when the run ends, with errors of our own."""

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from pytest_ollama_warmup.errors import (
    Aborted,
    NoAnswer,
    NotOllama,
    ServerError,
    ServerUnreachable,
    TlsFailed,
)
from pytest_ollama_warmup.ollama.limits import LINE_BYTES, Limit, TooLong, TooSlow
from pytest_ollama_warmup.ollama.logs import log_request
from pytest_ollama_warmup.ollama.tls import named_by, trust
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from pytest_ollama_warmup.ollama.host import Host


class Answer(NamedTuple):
    """A whole answer; *text* is its content as its header says that it is written."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    encoding: str

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode(self.encoding, errors="replace")


class Question(NamedTuple):
    """A request that can be sent more than once: making it costs a quarter of a short one."""

    http: httpx.Request
    body: Mapping[str, object] | None

    @property
    def what(self) -> str:
        """The method and the path."""
        return f"{self.http.method} {self.http.url.path}"


class Transport:
    """The connections to one server. Safe for use in several threads."""

    def __init__(self, host: Host, headers: Mapping[str, str]) -> None:
        self.host = host
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        # A set must not grow while abort() goes through it.
        self._sockets_lock = threading.Lock()
        # What each thread reads, in httpx too, is an answer to its own request.
        self._reading = threading.local()
        self.aborted = False
        try:
            self._http = httpx.Client(
                base_url=host.url,
                headers=headers,
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
            words = f"a proxy variable cannot be used ({clean(exc, 200)})"
            raise self.unreachable("proxy setting", words=words) from exc
        # Held: a module of the suite may put something else in its place.
        self._send, self._build = self._http.send, self._http.build_request

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

    def question(
        self, method: str, path: str, limit_s: float, body: Mapping[str, object] | None = None
    ) -> Question:
        """Make a request, each of whose bytes may take *limit_s* seconds to come."""
        timeout = httpx.Timeout(min(5.0, limit_s), read=limit_s)
        extensions = {"trace": self._trace}
        request = self._build(method, path, json=body, timeout=timeout, extensions=extensions)
        return Question(request, body)

    def ask(self, question: Question, limit_s: float, most: int) -> Answer:
        """Return the whole answer, which has *limit_s* seconds and *most* bytes to come.

        Raises:
            ServerError: there is none.
        """
        with _Exchange(self, question, Limit(limit_s, most)) as exchange:
            response = _plain(self._send(question.http, stream=True))
            response.read()
            exchange.end = f"HTTP {response.status_code}"
        return _answer(response)

    def stream(self, question: Question, silence_s: float) -> Generator[Answer | bytes, None, None]:
        """Yield the lines of an answer as they come; one that is an error, as a whole.

        *silence_s* is how long no line at all may come.

        Raises:
            ServerError: there is no answer, or no end of it.
        """
        limit = Limit(silence_s)
        with (
            _Exchange(self, question, limit) as exchange,
            closing(_plain(self._send(question.http, stream=True))) as response,
        ):
            exchange.end = f"HTTP {response.status_code}"
            if response.status_code != 200:
                response.read()
                yield _answer(response)
                return
            limit.most = LINE_BYTES
            for line in _lines(response):
                yield line
                # Also for this thread: it may have asked something else meanwhile.
                exchange.begin_again()

    def unreachable(
        self, cause: NoAnswer, waited_s: float = 0.0, words: str = ""
    ) -> ServerUnreachable:
        """Return the error of a server that gives no answer."""
        host = self.host
        return ServerUnreachable(host.url, host.source, cause, waited_s, host.note, words)

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
                data: bytes = read(max_bytes, timeout)
                return data
            data = read(max_bytes, limit.left_s())
            limit.count(len(data))
            return data

        stream.read = bounded


class _Exchange:
    """Limit the answer to one request, log both, and turn httpx's exceptions into ours.

    Nothing else is caught: a mocking library's AssertionError must reach the test that caused it.
    """

    def __init__(self, transport: Transport, question: Question, limit: Limit) -> None:
        self._transport, self._question, self._limit = transport, question, limit
        self.end = "no answer"
        self._log_end: Callable[[str], None] = lambda end: None

    def __enter__(self) -> _Exchange:
        if self._transport.aborted:
            raise self._aborted()
        http, body = self._question
        self._log_end = log_request(http.method, http.url, body)
        self.begin_again()
        return self

    def begin_again(self) -> None:
        """Give what comes from now on, to this thread, the whole limit."""
        self._limit.renew()
        self._transport._reading.limit = self._limit

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self._transport._reading.limit = None
        if not isinstance(exc, httpx.RequestError | TooSlow | TooLong):
            # Who reads a stream may leave before its end.
            dropped = "dropped" if isinstance(exc, GeneratorExit) else type(exc).__name__
            self._log_end(self.end if exc is None else dropped)
            return
        error = self._aborted() if self._transport.aborted else self._as_server_error(exc)
        self._log_end(error.brief)
        raise error from exc

    def _aborted(self) -> Aborted:
        host = self._transport.host
        return Aborted(host.url, host.source)

    def _as_server_error(self, exc: Exception) -> ServerError:
        host, unreachable = self._transport.host, self._transport.unreachable
        if isinstance(exc, TooLong):
            return self._not_ollama(str(exc))
        if self._limit.came and isinstance(exc, TooSlow | httpx.ReadTimeout):
            return unreachable("no complete answer")
        causes = list(_chain(exc))
        tls = next((error for error in causes if isinstance(error, ssl.SSLError)), None)
        if tls is not None:
            return TlsFailed(host.url, host.source, _tls_words(tls))
        if type(exc) is httpx.TimeoutException:
            # No time-out of httpx itself, which has a class for each: pytest-httpx says so that it
            # has no answer for us.
            return self._not_ollama(clean(exc, 100))
        garbled = isinstance(exc, httpx.RemoteProtocolError | httpx.DecodingError)
        if garbled and "without sending" not in str(exc):
            return self._not_ollama(f"no HTTP: {clean(exc, 100)}")
        cause, words = _cause(exc, causes)
        return unreachable(cause, words=words)

    def _not_ollama(self, seen: str) -> NotOllama:
        host = self._transport.host
        return NotOllama(host.url, host.source, seen, host.note, self._question.what)


def _answer(response: httpx.Response) -> Answer:
    return Answer(
        response.status_code, response.headers, response.content, response.encoding or "utf-8"
    )


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
    error: BaseException | None = exc
    # What a mocking library raises again may be its own cause.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _cause(exc: Exception, causes: list[BaseException]) -> tuple[NoAnswer, str]:
    """Return why there is no answer, and the words of httpx where no cause of ours says it."""
    for error in causes:
        if isinstance(error, socket.gaierror):
            return "host name not found", ""
        if isinstance(error, ConnectionRefusedError):
            return "connection refused", ""
    if isinstance(exc, httpx.ConnectTimeout):
        return "no connection", ""
    if isinstance(exc, TooSlow | httpx.ReadTimeout):
        return "no answer", ""
    # httpcore joins the attempts on several addresses into one text without the OSError.
    text = clean(exc, 200)
    if "refused" in text.lower() or "All connection attempts failed" in text:
        return "connection refused", ""
    if isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError):
        return "connection lost", ""
    return "no server", text or type(exc).__name__


def _tls_words(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused ({clean(exc.verify_message, 200)})"
    return clean(exc.reason or exc, 200).replace("_", " ").lower()
