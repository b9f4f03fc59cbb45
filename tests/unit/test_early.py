"""One early request, against the emulator and against bare sockets."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.early import EarlyLoad
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.requests import headers, load_request
from pytest_ollama_warmup.ollama.sockets import BoundedSocket
from tests.conftest import LLAMA
from tests.test_faults import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THERE = replace(LLAMA, present=True)


def early(url: str, *, model: str = LLAMA.name, starts_s: float = 0.0, key: str = "") -> EarlyLoad:
    host = parse_host(url, "test")
    request = load_request(model, "generate", options={})
    return EarlyLoad(host, model, request, headers(host, key), limit_s=60.0, starts_s=starts_s)


def is_over() -> bool:
    return not any("early" in one.name for one in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(is_over)


def test_it_looks_and_then_asks_for_the_load() -> None:
    with Emulator([THERE]) as ollama:
        load = early(ollama.url)
        load.start()
        until(is_over)
        assert ["/api/ps", "/api/generate"] == [one.path for one in ollama.requests]
        assert (1, True) == (len(ollama.loads), load.asked is not None)
        assert load.asked is not None
        assert load.asked.end is not None
        assert load.asked.begin <= load.asked.end
        load.close()


@pytest.mark.parametrize(
    "name", [LLAMA.name, "LLAMA3.2:1b", "registry.ollama.ai/library/llama3.2:1b"]
)
def test_what_is_in_memory_stays_as_it_is(name: str) -> None:
    with Emulator([THERE]) as ollama:
        for _ in range(2):
            load = early(ollama.url, model=name)
            load.start()
            until(is_over)
        assert (1, None) == (len(ollama.loads), load.asked)
        assert ["/api/ps", "/api/generate", "/api/ps"] == [one.path for one in ollama.requests]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda ollama: ollama.answer_all_with(200, "text/html", b"<html>"),
        lambda ollama: ollama.answer_all_with(200, "application/json", b"[]"),
        lambda ollama: ollama.answer_all_with(200, "application/json", b'{"models": [1]}'),
        lambda ollama: ollama.answer_all_with(503, "text/plain", b"busy"),
        lambda ollama: setattr(ollama.state, "edit_ps", lambda models: None),
        lambda ollama: ollama.stop(),
    ],
    ids=["html", "list", "odd", "503", "no ps", "stopped"],
)
def test_whoever_cannot_tell_what_is_in_memory_is_asked_for_nothing(
    break_it: Callable[[Emulator], None],
) -> None:
    with Emulator([THERE]) as ollama:
        break_it(ollama)
        load = early(ollama.url)
        load.start()
        until(is_over)
        assert ([], None) == (ollama.loads, load.asked)
        assert not any(one.method == "POST" for one in ollama.requests)


@pytest.mark.parametrize(
    "model", [ScriptedModel("other:1"), replace(THERE, load_error="no memory")], ids=["404", "500"]
)
def test_a_load_that_fails_was_not_asked_for(model: ScriptedModel) -> None:
    with Emulator([model]) as ollama:
        load = early(ollama.url)
        load.start()
        until(is_over)
        assert (None, "/api/generate") == (load.asked, ollama.requests[-1].path)


def test_closing_ends_a_load_at_the_server_too() -> None:
    with Emulator([replace(THERE, load_s=600.0)]) as ollama:
        load = early(ollama.url)
        load.start()
        until(lambda: ollama.loading)
        assert load.asked is not None
        assert load.asked.end is None
        load.close()
        assert is_over()
        until(lambda: ollama.loading is None)


def test_closing_ends_the_wait_for_a_silent_server() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        load = early(f"http://127.0.0.1:{silent.getsockname()[1]}")
        load.start()
        connection, _ = silent.accept()
        with connection:
            load.close()
            assert is_over()


@contextmanager
def no_answer() -> Iterator[str]:
    """The URL of a port that answers no first packet."""
    with closing(socket.socket()) as listening, closing(socket.socket()) as first:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        first.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_closing_ends_the_wait_for_a_connection() -> None:
    with no_answer() as url:
        load = early(url)
        load.start()
        until(lambda: load._socket is not None)
        load.close()
        assert is_over()


def test_closing_ends_a_connection_that_begins_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = BoundedSocket.connect

    def late(sock: BoundedSocket, address: tuple[str, int]) -> None:
        load._closed.wait(10)
        time.sleep(0.1)
        connect(sock, address)

    monkeypatch.setattr(BoundedSocket, "connect", late)
    with no_answer() as url:
        load = early(url)
        load.start()
        until(lambda: load._socket is not None)
        load.close()
        assert is_over()


def test_closed_before_it_begins_it_opens_nothing() -> None:
    with Emulator([THERE]) as ollama:
        load = early(ollama.url)
        load._closed.set()
        load.start()
        until(is_over)
        assert [] == ollama.requests


def test_a_server_that_is_being_started_is_waited_for() -> None:
    with Emulator([THERE], start=False) as ollama:
        load = early(ollama.url, starts_s=30.0)
        load.start()
        ollama.start()
        until(is_over)
        assert 1 == len(ollama.loads)


def test_closing_ends_the_wait_for_a_start() -> None:
    with Emulator([THERE], start=False) as ollama:
        load = early(ollama.url, starts_s=600.0)
        load.start()
        load.close()
        assert is_over()


def test_it_sends_the_key_and_the_path_that_the_client_sends() -> None:
    with Emulator([THERE]) as ollama:
        load = early(f"{ollama.url}/behind", key="sk-secret")
        load.start()
        until(is_over)
        assert "/behind/api/ps" == ollama.requests[0].path
        assert "Bearer sk-secret" == ollama.requests[0].headers["authorization"]
