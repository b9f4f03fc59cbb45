"""Answers without an end, from bare sockets: how much is read of them, and for how long."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from contextlib import closing, suppress
from http.client import HTTPException
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.errors import ApiError, NotOllama, ServerUnreachable
from pytest_ollama_warmup.ollama import early, plain_look
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.early import EarlyLoad
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.limits import ANSWER_BYTES, LARGE_BYTES, LINE_BYTES
from pytest_ollama_warmup.ollama.requests import headers
from tests.talker import CHUNKED, CONTINUE, FAST, SLOW, chunk, endless, talking, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BOUND_S = 30.0
# What the sockets of both ends may hold beside what is read.
BUFFERS = 16_000_000

VERBS: dict[str, Callable[[Client, float], object]] = {
    "version": lambda client, limit_s: client.version(limit_s),
    "show": lambda client, limit_s: client.show("m", limit_s=limit_s),
    "local_models": lambda client, limit_s: client.local_models(limit_s=limit_s),
    "unload": lambda client, limit_s: client.unload("m", limit_s=limit_s),
    "load": lambda client, limit_s: client.load(
        "m", "generate", prompt="Hi", options={}, limit_s=limit_s
    ),
}
PATHS = {
    "version": "GET /api/version",
    "show": "POST /api/show",
    "local_models": "GET /api/tags",
    "unload": "POST /api/generate",
    "load": "POST /api/generate",
}
VERB = pytest.mark.parametrize("verb", VERBS)


@VERB
@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
@pytest.mark.timeout(BOUND_S)
def test_an_answer_that_goes_on_and_on_is_left_when_its_time_is_over(
    verb: str, answer: Callable[[], Iterable[bytes]]
) -> None:
    with talking(answer, 0.02) as (talker, client):
        # On a busy machine the first byte may come after the shortest limit.
        for limit_s in (0.2, 2.0, 10.0):
            with pytest.raises(ServerUnreachable) as caught:
                VERBS[verb](client, limit_s)
            if caught.value.cause != "no answer":
                break
        assert ("no complete answer", True) == (caught.value.cause, caught.value.timed_out)
        assert talker.left.wait(BOUND_S)


@VERB
@pytest.mark.parametrize("answer", FAST.values(), ids=FAST)
@pytest.mark.timeout(BOUND_S)
def test_an_answer_that_fills_memory_is_left_at_its_limit(
    verb: str, answer: Callable[[], Iterable[bytes]]
) -> None:
    with talking(answer) as (talker, client):
        with pytest.raises(NotOllama, match=r"more than \d+(\.0)? MB without an end") as caught:
            VERBS[verb](client, BOUND_S)
        assert PATHS[verb] == caught.value.request
        assert talker.left.wait(BOUND_S)
        most = LARGE_BYTES if verb in ("local_models", "load") else ANSWER_BYTES
        assert most / 2 < talker.sent < most + BUFFERS


def test_so_is_the_look_at_what_is_in_memory() -> None:
    with talking(FAST["body"]) as (talker, client):
        with pytest.raises(NotOllama):
            client.loaded_models()
        assert talker.left.wait(BOUND_S)
        assert talker.sent < ANSWER_BYTES + BUFFERS


@pytest.mark.parametrize(
    "answer", [*SLOW.values(), *FAST.values()], ids=[*SLOW, *(f"fast {one}" for one in FAST)]
)
@pytest.mark.timeout(BOUND_S)
def test_so_is_it_without_httpx(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Iterable[bytes]]
) -> None:
    fast = answer in FAST.values()
    if not fast:
        monkeypatch.setattr(plain_look, "LIMIT_S", 0.2)
    with talking(answer, 0.0 if fast else 0.02) as (talker, client):
        with pytest.raises((OSError, ValueError, HTTPException)):
            plain_look.loaded_models(client.host, "")
        assert talker.left.wait(BOUND_S)
        assert talker.sent < ANSWER_BYTES + BUFFERS


@pytest.mark.parametrize("answer", [SLOW["100 Continue"], SLOW["body"], FAST["100 Continue"]])
@pytest.mark.timeout(BOUND_S)
def test_an_early_load_ends_with_its_look(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Iterable[bytes]]
) -> None:
    fast = answer in FAST.values()
    if not fast:
        monkeypatch.setattr(early, "_ANSWER_S", 0.2)
    with talking(answer, 0.0 if fast else 0.02) as (talker, client):
        request: tuple[str, dict[str, object]] = ("/api/generate", {"model": "m"})
        load = EarlyLoad(client.host, "m", request, headers(client.host, ""), limit_s=BOUND_S)
        load.start()
        assert talker.left.wait(BOUND_S)
        load._thread.join(BOUND_S)
        assert (None, 1) == (load.asked, len(talker.requests))


def test_a_server_that_never_ends_its_answer_is_waited_for_no_longer_than_asked() -> None:
    with talking(SLOW["100 Continue"], 0.02) as (_, client):
        waits: list[tuple[str, float]] = []
        with pytest.raises(ServerUnreachable) as caught:
            client.wait_until_ready(0.6, lambda *wait: waits.append(wait))
        assert 0.6 == caught.value.waited_s
        assert {"no complete answer"} == {cause for cause, _ in waits}


# What is within the limits


def model(number: int) -> dict[str, Any]:
    name = f"registry.example.com/some-namespace/model-{number:06}:8b-instruct-q4_K_M"
    return {
        "name": name,
        "model": name,
        "modified_at": "2025-07-01T12:05:00.123456789+02:00",
        "size": 4_000_000_000 + number,
        "digest": f"{number:064x}",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "8.0B",
            "quantization_level": "Q4_K_M",
        },
    }


@pytest.mark.timeout(BOUND_S)
def test_a_hundred_thousand_models_are_listed() -> None:
    body = json.dumps({"models": [model(number) for number in range(100_000)]}).encode()
    with talking(whole(body)) as (_, client):
        found = client.local_models(limit_s=BOUND_S)
    assert 100_000 == len(found)
    assert f"{99_999:064x}" == found[-1].digest


def test_a_long_license_is_no_fault() -> None:
    body = json.dumps({"license": "x" * 3_000_000, "capabilities": ["completion"]}).encode()
    with talking(whole(body)) as (_, client):
        info = client.show("m")
    assert info is not None
    assert ("completion",) == info.capabilities


def test_what_comes_before_an_answer_is_no_fault_where_it_ends() -> None:
    body = b'{"version": "0.33.0"}'
    answer = whole(body)
    with talking(lambda: [CONTINUE * 5, *answer()]) as (_, client):
        assert "0.33.0" == client.version()


def test_one_connection_serves_many_answers() -> None:
    body = json.dumps({"models": [], "x": "x" * 3_000_000}).encode()
    one = b"".join(whole(body)())

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(65536):
                    connection.sendall(one)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with closing(Client(parse_host(address, "OLLAMA_HOST"))) as client:
            # Together more than one answer may have.
            assert [[]] * 4 == [client.loaded_models() for _ in range(4)]


# What is compressed


def test_nothing_compressed_is_asked_for() -> None:
    with talking(whole(b'{"version": "1"}')) as (talker, client):
        client.version()
        plain_host = client.host
        with suppress(OSError, ValueError, HTTPException):
            plain_look.loaded_models(plain_host, "")
        assert 2 == len(talker.requests)
        for request in talker.requests:
            assert 1 == request.lower().count(b"accept-encoding: identity\r\n")
            assert b"gzip" not in request


BOMB = gzip.compress(b'{"version": "' + b"0" * 50_000_000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_what_is_compressed_all_the_same_is_not_unpacked(encoding: str) -> None:
    more = f"content-encoding: {encoding}\r\n".encode()
    with talking(whole(BOMB, more)) as (_, client):
        words = rf"compressed \({encoding}\), which was not asked for"
        with pytest.raises(NotOllama, match=words):
            client.version()
        with pytest.raises(ApiError, match=words):
            client.show("m")
        with pytest.raises(ApiError, match=words):
            list(client.pull("m", silence_s=BOUND_S))


def test_an_answer_that_says_it_is_not_compressed_is_read() -> None:
    with talking(whole(b'{"version": "1"}', b"content-encoding: identity\r\n")) as (_, client):
        assert "1" == client.version()


def test_a_compressed_page_of_a_gateway_is_still_the_gateways() -> None:
    head = b"HTTP/1.1 504 Gateway Time-out\r\ncontent-encoding: gzip\r\n"
    page = gzip.compress(b"<html>")
    answer = head + b"content-length: %d\r\n\r\n" % len(page) + page
    with talking(lambda: [answer]) as (_, client), pytest.raises(ApiError) as caught:
        client.show("m")
    assert "gateway" == caught.value.cause


# Pulls


def line(**data: object) -> bytes:
    return json.dumps(data).encode() + b"\n"


ENDLESS_PULLS = {
    "line": endless(CHUNKED, chunk(b"x" * 65536)),
    "blank lines": endless(CHUNKED, chunk(b"\n" * 65536)),
    "line after lines": endless(
        CHUNKED + chunk(line(status="pulling manifest")), chunk(b" " * 30_000)
    ),
    "100 Continue": FAST["100 Continue"],
    "error": endless(b"HTTP/1.1 500 Oops\r\n\r\n", b"x" * 65536),
}


@pytest.mark.parametrize("answer", ENDLESS_PULLS.values(), ids=ENDLESS_PULLS)
@pytest.mark.timeout(BOUND_S)
def test_a_line_of_a_pull_without_an_end_is_left_at_its_limit(
    answer: Callable[[], Iterable[bytes]],
) -> None:
    with talking(answer) as (talker, client):
        with pytest.raises(NotOllama, match=r"POST /api/pull: more than \d\.0 MB") as caught:
            list(client.pull("m", silence_s=BOUND_S))
        assert "POST /api/pull" == caught.value.request
        assert talker.left.wait(BOUND_S)
        assert talker.sent < ANSWER_BYTES + BUFFERS


SLOW_PULLS = {
    "line": endless(CHUNKED, chunk(b"x")),
    "blank lines": endless(CHUNKED, chunk(b"\n")),
    "100 Continue": SLOW["100 Continue"],
    "header": SLOW["header"],
}


@pytest.mark.parametrize("answer", SLOW_PULLS.values(), ids=SLOW_PULLS)
@pytest.mark.timeout(BOUND_S)
def test_bytes_that_make_no_line_are_silence(answer: Callable[[], Iterable[bytes]]) -> None:
    with talking(answer, 0.02) as (talker, client):
        with pytest.raises(ServerUnreachable) as caught:
            list(client.pull("m", silence_s=0.2))
        assert caught.value.timed_out
        assert talker.left.wait(BOUND_S)


def test_a_pull_may_take_much_longer_than_one_line() -> None:
    lines = [chunk(line(status="pulling", digest="a", total=50, completed=n)) for n in range(50)]
    with talking(lambda: [CHUNKED, *lines, b"0\r\n\r\n"], 0.02) as (_, client):
        found = list(client.pull("m", silence_s=0.5))
    assert list(range(50)) == [one.completed for one in found]


def test_a_pull_may_have_more_bytes_than_one_line() -> None:
    lines = [line(status="x" * 90, note="y" * (LINE_BYTES * 9 // 10)) for _ in range(12)]
    # In pieces that end anywhere.
    body = b"".join(lines)
    parts = [chunk(body[at : at + 30_000]) for at in range(0, len(body), 30_000)]
    with talking(lambda: [CHUNKED, *parts, b"0\r\n\r\n"]) as (_, client):
        assert 12 == len(list(client.pull("m", silence_s=BOUND_S)))


def test_a_pull_keeps_its_limits_while_its_thread_asks_something_else() -> None:
    parts = [CHUNKED, chunk(line(status="pulling manifest"))]
    with (
        talking(lambda: chain(parts, repeat(chunk(b"x" * 65536)))) as (_, client),
        talking(whole(b'{"version": "1"}')) as (_, other),
    ):
        # The client that pulls, and another one: limits are of an answer.
        pull = client.pull("m", silence_s=BOUND_S)
        assert "pulling manifest" == next(pull).status
        assert "1" == other.version()
        with pytest.raises(NotOllama):
            client.version()
        with pytest.raises(NotOllama, match="POST /api/pull"):
            next(pull)
