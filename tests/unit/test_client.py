"""The HTTP API, against scripted answers (respx) and against bare sockets."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import respx

from pytest_ollama_warmup.errors import (
    Aborted,
    AccessDenied,
    ApiError,
    NotOllama,
    ServerUnreachable,
    TlsFailed,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.responses import LoadedModel, LocalModel, ModelInfo, PullProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URL = "http://127.0.0.1:11434"
SECRET = "sk-hunter2-0123456789"
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@pytest.fixture
def server() -> Iterator[respx.MockRouter]:
    with respx.mock(base_url=URL, assert_all_called=False) as router:
        yield router


@contextmanager
def talking_to(address: str = URL, key: str = "") -> Iterator[Client]:
    with closing(Client(parse_host(address, "OLLAMA_HOST"), key)) as made:
        yield made


@pytest.fixture
def client() -> Iterator[Client]:
    with talking_to() as made:
        yield made


def body_of(route: respx.Route) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(route.calls.last.request.content)
    return body


def timeouts_of(route: respx.Route) -> dict[str, float | None]:
    timeouts: dict[str, float | None] = route.calls.last.request.extensions["timeout"]
    return timeouts


@contextmanager
def listening(answer: bytes | None) -> Iterator[tuple[str, threading.Event]]:
    """A bare server on 127.0.0.1: its address, and an event that a request has come.

    It gives *answer* and closes the connection, or with None hangs until the test ends.
    """
    asked, over = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                asked.set()
                if answer is None:
                    over.wait(60)
                else:
                    # A client that has seen enough may be gone.
                    with suppress(OSError):
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        over.set()
        thread.join(30)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# GET /api/version


def test_the_version_is_returned(client: Client, server: respx.MockRouter) -> None:
    server.get("/api/version").respond(json={"version": "0.33.0"})
    assert "0.33.0" == client.version()


def test_the_version_is_shown_on_one_line(client: Client, server: respx.MockRouter) -> None:
    server.get("/api/version").respond(json={"version": "0.33\x1b[31m\n.0"})
    assert "0.33 .0" == client.version()


def test_a_path_of_the_address_comes_before_that_of_the_api() -> None:
    with respx.mock() as router, talking_to("https://gateway.test/ollama/") as client:
        router.get("https://gateway.test/ollama/api/version").respond(json={"version": "1"})
        assert "1" == client.version()


def _json(text: str, status: int = 200) -> httpx.Response:
    # httpx puts spaces into the JSON that it makes, or does not, by its version.
    return httpx.Response(status, text=text, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (
            httpx.Response(200, html="<html><TITLE lang=en>\n Sign in\n</TITLE><p>Welcome"),
            '200 text/html "Sign in"',
        ),
        (httpx.Response(200, html="<p>It works!</p>"), '200 text/html "<p>It works!</p>"'),
        (_json('{"status":"ok"}'), '200 application/json "{"status":"ok"}"'),
        (httpx.Response(200, json=["version"]), '200 application/json "["version"]"'),
        (httpx.Response(200, text="Ollama is running"), '200 text/plain "Ollama is running"'),
        (httpx.Response(200), "200"),
        (httpx.Response(404, text="404 page not found"), '404 text/plain "404 page not found"'),
        (_json('{"version":"1"}', 404), '404 application/json "{"version":"1"}"'),
        (httpx.Response(302, headers={"location": "https://h/login"}), "302"),
        (httpx.Response(200, text="x" * 70), f'200 text/plain "{"x" * 59}…"'),
        (httpx.Response(200, text="[" * 100_000), f'200 text/plain "{"[" * 59}…"'),
        (httpx.Response(200, content=b"\xff\xfe\x00\x1b[2J"), '200 "��"'),
    ],
)
def test_another_service_is_told_by_its_answer(
    client: Client, server: respx.MockRouter, answer: httpx.Response, seen: str
) -> None:
    server.get("/api/version").mock(answer)
    with pytest.raises(NotOllama) as caught:
        client.version()
    assert (URL, "OLLAMA_HOST", seen, "", "GET /api/version") == caught.value.args


def test_another_service_on_port_80_gets_a_note() -> None:
    with respx.mock() as router, talking_to("http://h.test") as client:
        router.get("http://h.test/api/version").respond(text="hello")
        with pytest.raises(NotOllama, match="Note: http:// without a port means port 80"):
            client.version()


def test_nothing_on_port_80_gets_the_same_note() -> None:
    with respx.mock() as router, talking_to("http://h.test") as client:
        router.get("http://h.test/api/version").mock(side_effect=httpx.ConnectError("refused"))
        with pytest.raises(ServerUnreachable, match="http:// without a port means port 80"):
            client.wait_until_ready(0.0)


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (httpx.Response(401, json={"error": "unauthorized"}), 401, "unauthorized"),
        (httpx.Response(401, text="who are you?"), 401, "who are you?"),
        (httpx.Response(403, json={"message": "no"}), 403, "{'message': 'no'}"),
        (httpx.Response(403), 403, ""),
    ],
)
def test_refused_access_keeps_the_servers_words(
    client: Client, server: respx.MockRouter, answer: httpx.Response, status: int, words: str
) -> None:
    server.get("/api/version").mock(answer)
    with pytest.raises(AccessDenied) as caught:
        client.version()
    assert (URL, "OLLAMA_HOST", status, words, "none") == caught.value.args


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_fails_may_yet_start(
    client: Client, server: respx.MockRouter, status: int
) -> None:
    server.get("/api/version").respond(status, text="not yet")
    with pytest.raises(ServerUnreachable) as caught:
        client.version()
    assert ("no server", f"HTTP {status}") == (caught.value.cause, caught.value.why)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "connection refused"),
        (httpx.ConnectError("All connection attempts failed"), "connection refused"),
        (httpx.ConnectError("[Errno 113] No route to host"), "[Errno 113] No route to host"),
        (httpx.ConnectTimeout("timed out"), "no connection"),
        (httpx.ReadTimeout("timed out"), "no answer"),
        (httpx.ReadError("reset"), "connection lost"),
        (
            httpx.RemoteProtocolError("Server disconnected without sending a response."),
            "connection lost",
        ),
        (httpx.ProxyError("\x1b[31m502 http://u:hunter2@p"), "502 http://***@p"),
        (httpx.WriteError(""), "WriteError"),
    ],
)
def test_a_failed_connection_has_its_cause_in_a_few_words(
    client: Client, server: respx.MockRouter, error: httpx.TransportError, cause: str
) -> None:
    server.get("/api/version").mock(side_effect=error)
    with pytest.raises(ServerUnreachable) as caught:
        client.version()
    seen = caught.value
    assert (URL, "OLLAMA_HOST", cause, 0.0) == (seen.url, seen.source, seen.why, seen.waited_s)
    assert ("no server" == seen.cause) == bool(seen.words)


def test_a_name_that_nobody_knows_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with talking_to("http://h.test:1") as client:
        with pytest.raises(ServerUnreachable) as caught:
            client.version()
        assert "host name not found" == caught.value.cause


def test_an_error_that_is_its_own_cause_has_an_end(
    client: Client, server: respx.MockRouter
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        # respx raises it again from an error that it caused.
        raise httpx.ConnectError("refused")

    server.get("/api/version").mock(side_effect=fail)
    with pytest.raises(ServerUnreachable) as caught:
        client.version()
    assert "connection refused" == caught.value.cause


def test_a_port_without_a_server_refuses() -> None:
    with talking_to(f"127.0.0.1:{closed_port()}") as client:
        with pytest.raises(ServerUnreachable) as caught:
            client.version()
        assert "connection refused" == caught.value.cause


def test_a_server_that_hangs_gives_no_answer() -> None:
    with listening(None) as (address, _), talking_to(address) as client:
        with pytest.raises(ServerUnreachable) as caught:
            client.version(timeout_s=0.05)
        assert "no answer" == caught.value.cause


def test_a_service_that_does_not_speak_http_is_another_one() -> None:
    with (
        listening(b"220 mail ESMTP\r\n\r\n") as (address, _),
        talking_to(address) as client,
        pytest.raises(NotOllama, match=r"GET /api/version: no HTTP: "),
    ):
        client.version()


def test_an_answer_that_cannot_be_decoded_is_of_another_service(
    client: Client, server: respx.MockRouter
) -> None:
    server.get("/api/version").respond(
        headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")
    )
    with pytest.raises(NotOllama):
        client.version()


def test_https_to_a_server_without_tls_says_so() -> None:
    with (
        listening(b"HTTP/1.0 400 Bad Request\r\n\r\n") as (address, _),
        talking_to(f"https://{address}") as client,
        pytest.raises(TlsFailed) as caught,
    ):
        client.version()
    assert f"https://{address}" == caught.value.url
    assert caught.value.words
    assert caught.value.words == caught.value.words.lower().replace("_", " ")


def test_a_certificate_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ssl.SSLCertVerificationError("long")
    refused.verify_message = "self-signed certificate"

    def wrap_socket(*args: object, **kwargs: object) -> None:
        raise refused

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_socket)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with talking_to(address) as client, pytest.raises(TlsFailed) as caught:
            client.version()
    assert "certificate refused (self-signed certificate)" == caught.value.words


def test_an_error_of_a_mocking_library_reaches_the_test(
    client: Client, server: respx.MockRouter
) -> None:
    with pytest.raises(AssertionError):
        client.version()


def test_a_proxy_of_the_environment_never_hears_of_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"version":"1"}'
    with listening(answer) as (address, _), talking_to(address) as client:
        assert "1" == client.version()


# The key


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", URL),
        ("localhost:1", "http://localhost:1"),
        ("[::1]:1", "http://[::1]:1"),
        ("https://h.test", "https://h.test"),
    ],
)
def test_the_key_is_sent_to_loopback_and_over_https(address: str, url: str) -> None:
    with respx.mock() as router, talking_to(address, SECRET) as client:
        route = router.get(f"{url}/api/version").respond(json={"version": "1"})
        client.version()
        assert f"Bearer {SECRET}" == route.calls.last.request.headers["authorization"]


@pytest.mark.parametrize("host", ["h.test", "127.h.test", "localhost.h.test", "192.168.0.2"])
def test_the_key_is_never_sent_in_the_clear(host: str) -> None:
    with respx.mock() as router, talking_to(f"http://{host}:1", SECRET) as client:
        route = router.get(f"http://{host}:1/api/version").respond(401)
        with pytest.raises(AccessDenied) as caught:
            client.version()
        assert "authorization" not in route.calls.last.request.headers
        assert "withheld" == caught.value.key


def test_without_a_key_none_is_sent(client: Client, server: respx.MockRouter) -> None:
    route = server.get("/api/version").respond(json={"version": "1"})
    client.version()
    assert "authorization" not in route.calls.last.request.headers


@pytest.mark.parametrize("key", ["sk-é", "sk-a\nsk-b", "sk-\x00"])
def test_a_key_that_no_header_can_hold_is_not_sent(server: respx.MockRouter, key: str) -> None:
    route = server.get("/api/version").respond(401)
    with talking_to(URL, key) as client:
        with pytest.raises(AccessDenied) as caught:
            client.version()
        assert "authorization" not in route.calls.last.request.headers
        assert "unusable" == caught.value.key


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, json.dumps({"error": f"bad key {SECRET}"})),
        (403, f"bad key {SECRET}"),
        (403, json.dumps({"detail": {"key": SECRET}})),
        (404, f"<title>{SECRET}</title>"),
        (200, f"your key: {SECRET}"),
        (200, "x" * 50 + SECRET),
        (401, "x" * 490 + SECRET),
    ],
)
def test_the_key_is_not_shown_when_the_server_echoes_it(
    server: respx.MockRouter, status: int, text: str
) -> None:
    server.get("/api/version").respond(status, text=text)
    with talking_to(URL, SECRET) as client:
        with pytest.raises((AccessDenied, NotOllama)) as caught:
            client.version()
        assert SECRET[:5] not in repr(caught.value)
        assert "***" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, f"bad key {SECRET}"),
        (200, json.dumps({"error": f"bad key {SECRET}"})),
        (200, f"bad key {SECRET}"),
        (200, "x" * 490 + SECRET),
    ],
)
def test_no_part_of_a_pull_shows_the_key(server: respx.MockRouter, status: int, text: str) -> None:
    server.post("/api/pull").respond(status, text=text)
    with talking_to(URL, SECRET) as client:
        with pytest.raises(ApiError) as caught:
            list(client.pull("m", silence_s=1))
        assert SECRET[:5] not in repr(caught.value)


# POST /api/show


@pytest.mark.parametrize(
    ("answer", "info"),
    [
        (
            {"capabilities": ["completion", "tools"], "details": {}},
            ModelInfo(("completion", "tools"), ""),
        ),
        ({"capabilities": []}, ModelInfo((), "")),
        ({}, ModelInfo(None, "")),
        ({"capabilities": None, "remote_host": None}, ModelInfo(None, "")),
        (
            {"capabilities": ["completion"], "remote_host": "https://ollama.com:443"},
            ModelInfo(("completion",), "https://ollama.com:443"),
        ),
    ],
)
def test_show_says_what_a_model_can_do_and_where_it_runs(
    client: Client, server: respx.MockRouter, answer: dict[str, Any], info: ModelInfo
) -> None:
    route = server.post("/api/show").respond(json=answer)
    assert info == client.show("M:latest")
    assert {"model": "M:latest"} == body_of(route)


def test_a_model_that_is_not_there_is_none(client: Client, server: respx.MockRouter) -> None:
    server.post("/api/show").respond(404, json={"error": "model 'm' not found"})
    assert None is client.show("m")


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (httpx.Response(500, json={"error": "invalid file magic"}), 500, "invalid file magic"),
        (httpx.Response(400, json={"error": "invalid model name"}), 400, "invalid model name"),
        (
            httpx.Response(502, html="<p>Bad Gateway"),
            502,
            "HTTP 502 from a gateway before the server",
        ),
        (httpx.Response(524, text="timed out"), 524, "HTTP 524 from a gateway before the server"),
        (httpx.Response(504, json={"error": "busy"}), 504, "busy"),
        (httpx.Response(500, html="<p>Oops"), 500, "a web page"),
        (httpx.Response(500), 500, "HTTP 500 without a word"),
        (httpx.Response(200, text="no json"), 200, "no json"),
        (httpx.Response(200, json=[1]), 200, "[1]"),
        (httpx.Response(200, json={"error": "late"}), 200, "late"),
        (httpx.Response(500, json={"error": "two\nlines\x1b[2J"}), 500, "two lines"),
    ],
)
def test_an_error_keeps_status_and_words(
    client: Client, server: respx.MockRouter, answer: httpx.Response, status: int, words: str
) -> None:
    server.post("/api/show").mock(answer)
    with pytest.raises(ApiError) as caught:
        client.show("m")
    assert (status, words) == (caught.value.status, caught.value.words)


@pytest.mark.parametrize(
    ("after_s", "words"), [(0.4, ""), (60.03, ", after 60 s"), (120.2, ", after 2 min")]
)
def test_a_gateway_is_quoted_with_the_time_after_which_it_gave_up(
    client: Client,
    server: respx.MockRouter,
    monkeypatch: pytest.MonkeyPatch,
    after_s: float,
    words: str,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])

    def answer(request: httpx.Request) -> httpx.Response:
        now[0] += after_s
        return httpx.Response(504, html="<p>Gateway Time-out")

    server.post("/api/generate").mock(side_effect=answer)
    with pytest.raises(ApiError) as caught:
        client.load("m", "generate", prompt="", options={}, limit_s=900)
    assert "gateway" == caught.value.cause
    assert pytest.approx(after_s) == caught.value.after_s
    assert f"HTTP 504 from a gateway before the server{words}" == caught.value.words


def test_every_request_may_be_denied(client: Client, server: respx.MockRouter) -> None:
    server.route().respond(401, json={"error": "unauthorized"})
    for ask in (
        lambda: client.show("m"),
        lambda: list(client.pull("m", silence_s=1)),
        lambda: client.load("m", "generate", prompt="", options={}, limit_s=1),
        client.loaded_models,
        client.version,
    ):
        with pytest.raises(AccessDenied, match="unauthorized"):
            ask()


# POST /api/pull


def lines(*data: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in data)


def test_a_pull_yields_the_servers_lines(client: Client, server: respx.MockRouter) -> None:
    route = server.post("/api/pull").respond(
        content=lines(
            {"status": "pulling manifest"},
            {"status": "pulling 8eeb52dfb3bb", "digest": "sha256:8e", "total": 10},
            {"status": "pulling 8eeb52dfb3bb", "digest": "sha256:8e", "total": 10, "completed": 7},
        )
        + b"\n\n"
        + lines({"status": "success"})
    )
    assert [
        PullProgress("pulling manifest"),
        PullProgress("pulling 8eeb52dfb3bb", "sha256:8e", 10, 0),
        PullProgress("pulling 8eeb52dfb3bb", "sha256:8e", 10, 7),
        PullProgress("success"),
    ] == list(client.pull("m", silence_s=900))
    assert {"model": "m", "stream": True} == body_of(route)


def test_a_pull_without_tls_is_asked_for_per_model(
    client: Client, server: respx.MockRouter
) -> None:
    route = server.post("/api/pull").respond(content=lines({"status": "success"}))
    list(client.pull("m", insecure=True, silence_s=900))
    assert {"model": "m", "stream": True, "insecure": True} == body_of(route)


def test_the_lines_of_a_pull_come_as_the_server_sends_them(
    client: Client, server: respx.MockRouter
) -> None:
    sent = []

    def stream() -> Iterator[bytes]:
        for status in ("a", "b"):
            sent.append(status)
            yield lines({"status": status})

    server.post("/api/pull").respond(content=stream())
    pull = client.pull("m", silence_s=900)
    assert PullProgress("a") == next(pull)
    assert ["a"] == sent
    assert [PullProgress("b")] == list(pull)


def test_a_pull_may_be_silent_as_long_as_allowed(client: Client, server: respx.MockRouter) -> None:
    route = server.post("/api/pull").respond(content=lines({"status": "success"}))
    list(client.pull("m", silence_s=900))
    assert 900 == timeouts_of(route)["read"]
    assert 5.0 == timeouts_of(route)["connect"]


def test_an_error_line_inside_200_is_an_error(client: Client, server: respx.MockRouter) -> None:
    server.post("/api/pull").respond(
        content=lines(
            {"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}
        )
    )
    pull = client.pull("m", silence_s=1)
    assert PullProgress("pulling manifest") == next(pull)
    with pytest.raises(ApiError) as caught:
        next(pull)
    assert (200, "pull model manifest: file does not exist") == caught.value.args[1:3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>\n", "not JSON: <html>"),
        (b"[1]\n", "not JSON: [1]"),
        (b'{"status": "succ', 'not JSON: {"status": "succ'),
        (b"\xff\n", "not JSON: �"),
    ],
)
def test_a_line_that_is_not_json_is_an_error(
    client: Client, server: respx.MockRouter, content: bytes, said: str
) -> None:
    server.post("/api/pull").respond(content=content)
    with pytest.raises(ApiError) as caught:
        list(client.pull("m", silence_s=1))
    assert (200, said) == caught.value.args[1:3]


def test_odd_values_in_a_line_are_no_progress(client: Client, server: respx.MockRouter) -> None:
    server.post("/api/pull").respond(
        content=lines({"status": "a", "total": "many", "completed": None}, {"total": {}})
    )
    assert [PullProgress("a"), PullProgress("")] == list(client.pull("m", silence_s=1))


def test_a_stream_that_just_ends_yields_no_success(
    client: Client, server: respx.MockRouter
) -> None:
    server.post("/api/pull").respond(content=lines({"status": "pulling manifest"}))
    assert [PullProgress("pulling manifest")] == list(client.pull("m", silence_s=1))


def test_a_stream_that_breaks_is_a_lost_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n" + b'{"status": "a"}\r\n'
    with (
        listening(answer) as (address, _),
        talking_to(address) as client,
        pytest.raises(ServerUnreachable) as caught,
    ):
        list(client.pull("m", silence_s=30))
    assert "connection lost" == caught.value.cause


def test_a_silent_stream_gives_no_answer(client: Client, server: respx.MockRouter) -> None:
    def stream() -> Iterator[bytes]:
        yield lines({"status": "pulling manifest"})
        raise httpx.ReadTimeout("timed out")

    server.post("/api/pull").respond(content=stream())
    pull = client.pull("m", silence_s=1)
    next(pull)
    with pytest.raises(ServerUnreachable) as caught:
        next(pull)
    assert "no answer" == caught.value.cause


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_pull_that_does_not_begin_is_an_error(
    client: Client, server: respx.MockRouter, status: int
) -> None:
    server.post("/api/pull").respond(status, json={"error": "invalid model name"})
    with pytest.raises(ApiError) as caught:
        list(client.pull("m", silence_s=1))
    assert (status, "invalid model name") == caught.value.args[1:3]


# POST /api/generate and /api/embed


@pytest.mark.parametrize(
    ("kind", "arguments", "body"),
    [
        (
            "generate",
            {"prompt": "Hi", "options": {}},
            {
                "model": "m",
                "prompt": "Hi",
                "stream": False,
                "options": {"num_predict": 5, "temperature": 0.1},
            },
        ),
        (
            "generate",
            {"prompt": "Hi", "options": {"num_ctx": 64, "use_mmap": True}, "keep_alive": 600.0},
            {
                "model": "m",
                "prompt": "Hi",
                "stream": False,
                "options": {"num_ctx": 64, "use_mmap": True, "num_predict": 5, "temperature": 0.1},
                "keep_alive": 600,
            },
        ),
        (
            "generate",
            {"prompt": "", "options": {}},
            {"model": "m", "prompt": "", "stream": False},
        ),
        (
            "generate",
            {"prompt": "", "options": {"num_ctx": 64}, "keep_alive": -1.0},
            {
                "model": "m",
                "prompt": "",
                "stream": False,
                "options": {"num_ctx": 64},
                "keep_alive": -1,
            },
        ),
        ("embed", {"prompt": "Hi", "options": {}}, {"model": "m", "input": "Hi"}),
        (
            "embed",
            {"prompt": "", "options": {"num_ctx": 64}, "keep_alive": 1.5},
            {"model": "m", "input": [], "options": {"num_ctx": 64}, "keep_alive": 1.5},
        ),
    ],
)
def test_a_load_sends_exactly_this(
    client: Client,
    server: respx.MockRouter,
    kind: Any,
    arguments: dict[str, Any],
    body: dict[str, Any],
) -> None:
    route = server.post(f"/api/{kind}").respond(json={"done": True})
    client.load("m", kind, **arguments, limit_s=900)
    assert body == body_of(route)
    # 600.0 == 600 in Python, and is written otherwise.
    assert json.dumps(body.get("keep_alive")) == json.dumps(body_of(route).get("keep_alive"))


def test_options_of_the_caller_stay_as_they_were(client: Client, server: respx.MockRouter) -> None:
    server.post("/api/generate").respond(json={"done": True})
    options = {"num_ctx": 64}
    client.load("m", "generate", prompt="Hi", options=options, limit_s=900)
    assert {"num_ctx": 64} == options


@pytest.mark.parametrize("kind", ["generate", "embed"])
def test_a_load_is_not_given_up_early(client: Client, server: respx.MockRouter, kind: Any) -> None:
    route = server.post(f"/api/{kind}").respond(json={"done": True})
    client.load("m", kind, prompt="Hi", options={}, limit_s=900)
    assert 900 == timeouts_of(route)["read"]
    assert 5.0 == timeouts_of(route)["connect"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, '"m" does not support generate'),
        (404, "model 'm' not found"),
        (500, "llama runner process has terminated"),
        (503, BUSY),
        (200, "an error inside a stream"),
    ],
)
def test_a_load_that_fails_keeps_status_and_words(
    client: Client, server: respx.MockRouter, status: int, words: str
) -> None:
    server.post("/api/generate").respond(status, json={"error": words})
    with pytest.raises(ApiError) as caught:
        client.load("m", "generate", prompt="Hi", options={}, limit_s=900)
    assert (status, " ".join(words.split("\n"))) == caught.value.args[1:3]


# A request of the suite's own

SYSTEM = [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("path", "request_", "body"),
    [
        (
            "chat",
            {"messages": SYSTEM, "model": "other", "stream": True},
            {
                "messages": SYSTEM,
                "model": "m",
                "stream": False,
                "options": {"num_ctx": 64, "num_predict": 5},
            },
        ),
        (
            "generate",
            {"prompt": "Hi", "options": {"num_ctx": 128, "num_predict": 1}, "think": False},
            {
                "prompt": "Hi",
                "model": "m",
                "stream": False,
                "think": False,
                "options": {"num_ctx": 128, "num_predict": 1},
            },
        ),
        (
            "embed",
            {"input": ["a", "b"], "options": None},
            {"input": ["a", "b"], "model": "m", "options": {"num_ctx": 64, "num_predict": 5}},
        ),
    ],
)
def test_a_request_of_the_suite_goes_where_its_fields_belong(
    client: Client,
    server: respx.MockRouter,
    path: str,
    request_: dict[str, Any],
    body: dict[str, Any],
) -> None:
    route = server.post(f"/api/{path}").respond(json={"done": True})
    client.warm_up("m", request_, options={"num_ctx": 64}, limit_s=900)
    assert body == body_of(route)
    assert 900 == timeouts_of(route)["read"]


@pytest.mark.parametrize("status", [400, 404, 500, 501, 503])
def test_a_request_of_the_suite_that_fails_keeps_status_and_words(
    client: Client, server: respx.MockRouter, status: int
) -> None:
    server.post("/api/chat").respond(status, json={"error": "no"})
    with pytest.raises(ApiError) as caught:
        client.warm_up("m", {"messages": SYSTEM}, options={}, limit_s=900)
    assert (status, "no") == caught.value.args[1:3]


# GET /api/tags


def test_stored_models_have_digest_and_size(client: Client, server: respx.MockRouter) -> None:
    server.get("/api/tags").respond(
        json={
            "models": [
                {"name": "m:latest", "digest": "ab12", "size": 5, "capabilities": ["tools"]},
                {"model": "old:1b", "digest": "sha256:cd34"},
                {"name": "odd", "size": "big", "digest": "\x1b[2Jx"},
                "rubbish",
            ]
        }
    )
    assert [
        LocalModel("m:latest", "ab12", 5),
        LocalModel("old:1b", "cd34", 0),
        LocalModel("odd", "x", 0),
    ] == client.local_models()


def test_a_list_is_waited_for_as_long_as_asked(client: Client, server: respx.MockRouter) -> None:
    route = server.get("/api/tags").respond(json={"models": []})
    client.local_models()
    assert 5.0 == timeouts_of(route)["read"]
    client.local_models(limit_s=60.0)
    assert (60.0, 5.0) == (timeouts_of(route)["read"], timeouts_of(route)["connect"])


# GET /api/ps

DATE = "Tue, 01 Jul 2025 10:00:00 GMT"


def test_loaded_models_have_their_keep_alive_by_the_servers_clock(
    client: Client, server: respx.MockRouter
) -> None:
    server.get("/api/ps").respond(
        json={
            "models": [
                {
                    "name": "m:latest",
                    "model": "m:latest",
                    "digest": "ab12",
                    "size": 5,
                    "size_vram": 0,
                    "context_length": 4096,
                    "expires_at": "2025-07-01T12:05:00.123456789+02:00",
                },
                {"model": "old:1b", "expires_at": "2025-07-01T09:59:00Z"},
                {"name": "odd", "expires_at": "soon", "size": "big", "digest": "\x1b[2Jx"},
                {"name": "none"},
                "rubbish",
            ]
        },
        headers={"date": DATE},
    )
    found = client.loaded_models()
    assert [
        LoadedModel("m:latest", "ab12", 5, 4096, 300.123456, "2025-07-01T12:05:00.123456789+02:00"),
        LoadedModel("old:1b", "", 0, 0, -60.0, "2025-07-01T09:59:00Z"),
        LoadedModel("odd", "x", 0, 0, None, "soon"),
        LoadedModel("none", "", 0, 0, None),
    ] == found


def test_a_model_that_never_expires_has_a_keep_alive_of_centuries(
    client: Client, server: respx.MockRouter
) -> None:
    server.get("/api/ps").respond(
        json={"models": [{"name": "m", "expires_at": "2319-03-05T10:11:12.987654321+01:00"}]},
        headers={"date": DATE},
    )
    (one,) = client.loaded_models()
    assert one.keep_alive_s is not None
    assert one.keep_alive_s > 290 * 365 * 86400


@pytest.mark.parametrize("headers", [{}, {"date": "yesterday"}])
def test_without_a_clock_of_the_server_ours_is_taken(
    client: Client, server: respx.MockRouter, headers: dict[str, str]
) -> None:
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    server.get("/api/ps").respond(
        json={"models": [{"name": "m", "expires_at": expires}]}, headers=headers
    )
    (one,) = client.loaded_models()
    assert one.keep_alive_s is not None
    assert 3000 < one.keep_alive_s <= 3600


LISTS = pytest.mark.parametrize("verb", ["loaded_models", "local_models"])
PATHS = {"loaded_models": "/api/ps", "local_models": "/api/tags"}


@LISTS
@pytest.mark.parametrize("answer", [{"models": []}, {"models": None}, {}])
def test_no_models_are_an_empty_list(
    client: Client, server: respx.MockRouter, verb: str, answer: dict[str, Any]
) -> None:
    server.get(PATHS[verb]).respond(json=answer)
    assert [] == getattr(client, verb)()


@LISTS
@pytest.mark.parametrize(
    "answer", [httpx.Response(500, json={"error": "nil"}), httpx.Response(200, html="<p>")]
)
def test_what_is_not_ollamas_answer_is_an_error(
    client: Client, server: respx.MockRouter, verb: str, answer: httpx.Response
) -> None:
    server.get(PATHS[verb]).mock(answer)
    with pytest.raises(ApiError):
        getattr(client, verb)()


# Waiting


class Clock:
    """Time that passes only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def wait(
    client: Client,
    limit_s: float,
    clock: Clock,
    on_wait: Callable[[str, float], None],
    refused_s: float | None = None,
) -> str:
    return client.wait_until_ready(
        limit_s, on_wait, refused_s=refused_s, clock=clock, sleep=clock.sleep
    )


def test_a_server_that_answers_is_not_waited_for(client: Client, server: respx.MockRouter) -> None:
    server.get("/api/version").respond(json={"version": "0.33.0"})
    clock, waits = Clock(), list[tuple[str, float]]()
    assert "0.33.0" == wait(client, 60, clock, lambda *wait: waits.append(wait))
    assert ([], []) == (clock.slept, waits)


def test_a_server_is_waited_for_until_it_answers(client: Client, server: respx.MockRouter) -> None:
    server.get("/api/version").mock(
        side_effect=[
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("timed out"),
            httpx.Response(503),
            httpx.Response(200, json={"version": "0.33.0"}),
        ]
    )
    clock, causes = Clock(), list[str]()
    assert "0.33.0" == wait(client, 60, clock, lambda cause, waited: causes.append(cause))
    assert ["connection refused", "no answer", "HTTP 503"] == causes
    assert 3 == len(clock.slept)


def test_waiting_ends_at_the_limit_with_a_last_attempt(
    client: Client, server: respx.MockRouter
) -> None:
    route = server.get("/api/version").mock(side_effect=httpx.ConnectError("refused"))
    clock, waits = Clock(), list[float]()
    with pytest.raises(ServerUnreachable) as caught:
        wait(client, 2.0, clock, lambda cause, waited: waits.append(waited))
    assert pytest.approx(2.0) == sum(clock.slept)
    assert (URL, "OLLAMA_HOST", "connection refused", 2.0, "", "") == caught.value.args
    assert sorted(waits) == waits
    assert [0.0, pytest.approx(2.0)] == [waits[0], waits[-1]]
    assert len(clock.slept) + 1 == route.call_count == len(waits)


@pytest.mark.parametrize(
    ("error", "waited_s"),
    [(httpx.ConnectError("refused"), 0.25), (httpx.ConnectTimeout("silence"), 2.0)],
    ids=["refused", "silent"],
)
def test_a_port_that_refuses_has_a_limit_of_its_own(
    client: Client, server: respx.MockRouter, error: Exception, waited_s: float
) -> None:
    server.get("/api/version").mock(side_effect=error)
    clock = Clock()
    with pytest.raises(ServerUnreachable) as caught:
        wait(client, 2.0, clock, lambda cause, waited: None, 0.25)
    assert waited_s == caught.value.waited_s
    assert pytest.approx(waited_s) == sum(clock.slept)


def test_a_server_that_is_restarted_may_refuse_for_a_moment(
    client: Client, server: respx.MockRouter
) -> None:
    refusals = [httpx.ConnectError("refused")] * 2
    answer = httpx.Response(200, json={"version": "1"})
    server.get("/api/version").mock(side_effect=[*refusals, answer])
    assert "1" == wait(client, 2.0, Clock(), lambda cause, waited: None, 0.3)


def test_a_server_that_answers_at_the_limit_is_in_time(
    client: Client, server: respx.MockRouter
) -> None:
    clock = Clock()

    def answer(request: httpx.Request) -> httpx.Response:
        if clock.now < 102.0:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"version": "1"})

    server.get("/api/version").mock(side_effect=answer)
    assert "1" == wait(client, 2.0, clock, lambda cause, waited: None)


def test_no_time_is_one_attempt(client: Client, server: respx.MockRouter) -> None:
    route = server.get("/api/version").mock(side_effect=httpx.ConnectError("refused"))
    clock = Clock()
    with pytest.raises(ServerUnreachable):
        wait(client, 0.0, clock, lambda cause, waited: None)
    assert (1, []) == (route.call_count, clock.slept)


def test_one_attempt_does_not_take_all_the_time(client: Client, server: respx.MockRouter) -> None:
    clock = Clock()

    def hang(request: httpx.Request) -> httpx.Response:
        clock.now += request.extensions["timeout"]["read"]
        raise httpx.ReadTimeout("timed out")

    server.get("/api/version").mock(side_effect=hang)
    with pytest.raises(ServerUnreachable):
        wait(client, 7.0, clock, lambda cause, waited: None)
    assert 107.0 <= clock.now <= 108.0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(200, html="<title>Sign in</title>"), NotOllama),
        (httpx.Response(404), NotOllama),
        (httpx.Response(401), AccessDenied),
        (httpx.Response(403), AccessDenied),
    ],
)
def test_what_waiting_cannot_help_is_told_at_once(
    client: Client, server: respx.MockRouter, answer: httpx.Response, error: type[Exception]
) -> None:
    route = server.get("/api/version").mock(answer)
    clock = Clock()
    with pytest.raises(error):
        wait(client, 60, clock, lambda cause, waited: None)
    assert (1, []) == (route.call_count, clock.slept)


# Cutting connections


def test_abort_wakes_a_thread_that_waits_for_a_load() -> None:
    with (
        listening(None) as (address, asked),
        talking_to(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        load = pool.submit(client.load, "m", "generate", prompt="Hi", options={}, limit_s=600.0)
        assert asked.wait(30)
        client.abort()
        with pytest.raises(Aborted):
            load.result(30)


def test_a_client_that_was_aborted_asks_nothing_more(
    client: Client, server: respx.MockRouter
) -> None:
    route = server.get("/api/version").respond(json={"version": "1"})
    client.abort()
    with pytest.raises(Aborted):
        client.version()
    assert not route.called


def test_abort_can_come_twice_and_after_the_end() -> None:
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"version":"1"}'
    with listening(answer) as (address, _), talking_to(address) as client:
        assert "1" == client.version()
        client.abort()
        client.close()
        client.abort()
