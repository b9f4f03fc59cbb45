"""Faults that the emulator plays: of pulls, of starting, of runners."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pytest_ollama_warmup.emulator import ScriptedModel, script, store
from tests.test_emulator import LONG_S, A, hanging, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

FAR = replace(A, present=False, size=1000, pull_rate=1e6)


class Clock:
    """``time`` of the downloads, set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(store, "time", clock)
    return clock


@contextmanager
def pulling(shelf: store.Store, model: ScriptedModel) -> Iterator[Iterator[dict[str, Any]]]:
    """Pull from *shelf* as a client that stays until left."""
    lines = shelf.pull(shelf.find(model.name), lambda seconds: None)
    try:
        yield lines
    finally:
        lines.close()


def completed(lines: Iterator[dict[str, Any]]) -> int:
    while "total" not in (line := next(lines)):
        pass
    return int(line.get("completed", 0))


def shelf_with(**script: Any) -> store.Store:
    shelf = store.Store()
    shelf.add(replace(FAR, pull_rate=100.0, **script))
    return shelf


# Pulls


def test_a_download_can_stand_still_forever(clock: Clock) -> None:
    shelf = shelf_with(pull_stall_at=500, pull_retry_s=1e9)
    with pulling(shelf, FAR) as lines:
        seen = [completed(lines)]
        for clock.now in (4.0, 5.0, 6.0, 1e6):
            seen.append(completed(lines))
    assert [0, 400, 500, 500, 500] == seen


def test_a_download_that_stands_still_can_go_on_by_itself(clock: Clock) -> None:
    shelf = shelf_with(pull_stall_at=500, pull_stall_s=10.0)
    with pulling(shelf, FAR) as lines:
        seen = [completed(lines)]
        for clock.now in (5.0, 14.9, 16.0, 19.0):
            seen.append(completed(lines))
    assert [0, 500, 500, 600, 900] == seen


def test_the_server_rolls_a_stalled_part_back_again_and_again(clock: Clock) -> None:
    shelf = shelf_with(pull_stall_at=500)
    with pulling(shelf, FAR) as lines:
        seen = [completed(lines)]
        for clock.now in (5.0, 34.9, 36.0, 39.0, 40.0, 69.9, 71.0):
            seen.append(completed(lines))
    assert [0, 500, 500, 100, 400, 500, 500, 100] == seen


def test_who_leaves_in_a_stall_keeps_its_bytes_and_may_pass_it(clock: Clock) -> None:
    shelf = shelf_with(pull_stall_at=500, pull_faults=1)
    with pulling(shelf, FAR) as lines:
        completed(lines)
        clock.now = 20.0
        assert 500 == completed(lines)
    with pulling(shelf, FAR) as lines:
        assert 500 == completed(lines)
        clock.now = 24.0
        assert 900 == completed(lines)
        clock.now = 25.0
        assert "success" == list(lines)[-1]["status"]


def test_who_comes_back_to_a_stall_that_lasts_stands_still_again(clock: Clock) -> None:
    shelf = shelf_with(pull_stall_at=500)
    for clock.now in (0.0, 20.0):
        with pulling(shelf, FAR) as lines:
            completed(lines)
            clock.now += 10.0
            assert 500 == completed(lines)


def test_a_connection_can_break_at_a_byte(clock: Clock) -> None:
    shelf = shelf_with(pull_drop_at=300, pull_faults=1)
    with pulling(shelf, FAR) as lines:
        completed(lines)
        clock.now = 9.0
        assert 300 == completed(lines)
        with pytest.raises(script.ConnectionDropped):
            next(lines)
    with pulling(shelf, FAR) as lines:
        assert 300 == completed(lines)


def test_a_connection_that_breaks_ends_without_a_last_chunk() -> None:
    with serving(replace(FAR, pull_drop_at=300)) as api, pytest.raises(httpx.RemoteProtocolError):
        api.lines("pull", model="a")


@pytest.mark.parametrize("fault", [{"pull_error": "503: busy"}, {"pull_cut": True}])
def test_faults_of_the_first_pulls_only(fault: dict[str, Any]) -> None:
    with serving(replace(FAR, **fault, pull_faults=2)) as api:
        ends = [api.lines("pull", model="a")[-1].get("status") for _ in range(3)]
    assert "success" not in ends[:2]
    assert "success" == ends[2]


# Starting


def test_a_server_that_starts_slowly_accepts_and_lets_wait() -> None:
    with serving(A, start_s=LONG_S) as api, hanging(api, "show", {"model": "a"}) as connection:
        wait_for(lambda: api.emulator.requests)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    with serving(A, start_s=0.2) as api:
        begin = time.monotonic()
        assert "0.33.0" == api.get("/api/version")["version"]
        assert time.monotonic() - begin >= 0.15


# Requests


HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
BUSY = "server busy, please try again.  maximum pending requests exceeded"


def test_the_next_requests_fail_and_later_ones_do_not() -> None:
    with serving(A) as api:
        api.emulator.fail(times=2)
        answers = [api.post("show", model="a") for _ in range(3)]
        assert [503, 503, 200] == [answer.status_code for answer in answers]
        assert {"error": BUSY} == answers[0].json()


def test_only_requests_to_a_path_fail() -> None:
    with serving(A) as api:
        api.emulator.fail(500, path="/api/chat")
        assert 200 == api.post("show", model="a").status_code
        answer = api.post("chat", model="a", **HELLO)
        assert (500, {"error": "Internal Server Error"}) == (answer.status_code, answer.json())
        assert 200 == api.post("chat", model="a", **HELLO).status_code


def test_faults_meet_requests_in_their_order_until_they_are_cleared() -> None:
    with serving(A) as api:
        api.emulator.fail(429, message="slow down")
        api.emulator.fail(500, times=None)
        statuses = [api.post("show", model="a").status_code for _ in range(3)]
        assert [429, 500, 500] == statuses
        api.emulator.clear_faults()
        assert 200 == api.post("show", model="a").status_code


def test_a_failure_has_the_form_of_the_api_that_was_asked() -> None:
    with serving(A) as api:
        api.emulator.fail(503)
        answer = api.http.post("/v1/chat/completions", json={"model": "a", **HELLO})
        assert (503, BUSY) == (answer.status_code, answer.json()["error"]["message"])


def test_a_failed_request_loads_nothing() -> None:
    with serving(A) as api:
        api.emulator.fail()
        api.post("generate", model="a")
        assert [] == api.loaded()


def test_many_requests_at_once_take_each_fault_once() -> None:
    with serving(A) as api:
        api.emulator.fail(times=7)
        answers = [api.later("show", model="a") for _ in range(40)]
        assert 7 == [answer.result().status_code for answer in answers].count(503)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_streamed_answer_breaks_off_after_some_words(path: str) -> None:
    with serving(A) as api:
        api.emulator.cut(after=2)
        body = {"model": "a", "stream": True, **HELLO}
        lines: list[str] = []
        with (
            pytest.raises(httpx.RemoteProtocolError),
            api.http.stream("POST", path, json=body) as answer,
        ):
            lines.extend(line for line in answer.iter_lines() if line)
        assert 2 == len(lines)
        with api.http.stream("POST", path, json=body) as answer:
            assert len([line for line in answer.iter_lines() if line]) > 8


@pytest.mark.parametrize("after", [2, 99])
def test_a_cut_answer_never_ends(after: int) -> None:
    with serving(A) as api:
        api.emulator.cut(after)
        seen: list[object] = []
        with (
            pytest.raises(httpx.RemoteProtocolError),
            api.stream("chat", model="a", **HELLO) as parts,
        ):
            seen.extend(parts)
        assert min(after, 9) == len(seen)


def test_an_answer_that_is_not_streamed_breaks_off_half_way() -> None:
    with serving(A) as api:
        api.emulator.cut(after=1)
        with pytest.raises(httpx.RemoteProtocolError, match=r"received [1-9]"):
            api.post("chat", model="a", stream=False, **HELLO)


def test_a_connection_can_break_before_an_answer() -> None:
    with serving(A) as api:
        api.emulator.cut()
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            api.post("chat", model="a", **HELLO)
        assert [] == api.loaded()
        assert 1 == len(api.emulator.calls("chat"))


# A script of a few words


def test_a_model_answers_what_its_script_says() -> None:
    with serving() as api:
        api.emulator.model("a", answer='{"city": "Paris"}\n')
        for change in ({}, {"stream": False}):
            lines = api.post("chat", model="a", **HELLO, **change).text.splitlines()
            words = [json.loads(line)["message"]["content"] for line in lines]
            assert '{"city": "Paris"}\n' == "".join(words)
        api.emulator.model("a", answer="Rome")
        assert "Rome" == api.ask("generate", model="a", prompt="Hi", stream=False)["response"]


def test_a_model_is_there_unless_the_script_says_otherwise() -> None:
    with serving() as api:
        api.emulator.model("a", size=1234)
        api.emulator.model("b", present=False)
        assert [("a:latest", 1234)] == [
            (one["name"], one["size"]) for one in api.get("/api/tags")["models"]
        ]
        assert "success" == api.lines("pull", model="b")[-1]["status"]


# Restarts


def test_a_restart_loses_what_is_loaded_and_keeps_what_is_pulled() -> None:
    with serving(A) as api:
        api.load("a")
        api.emulator.restart()
        assert [] == api.loaded_models()
        assert 200 == api.post("show", model="a").status_code


def test_a_restart_takes_its_time() -> None:
    with serving(A) as api:
        began = time.monotonic()
        api.emulator.restart(0.2)
        with pytest.raises(httpx.ConnectError):
            api.get("/api/version")

        def answers() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                return bool(api.get("/api/version"))
            return False

        wait_for(answers)
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("end", ["stop", "exit"])
def test_a_restart_under_way_ends_with_the_emulator(end: str) -> None:
    before = threading.active_count()
    with serving(A) as api:
        api.emulator.restart(0.05)
        timer = api.emulator._restart
        assert timer is not None
        if end == "stop":
            api.emulator.stop()
            timer.join()
            with pytest.raises(httpx.ConnectError):
                api.get("/api/version")
    timer.join()
    wait_for(lambda: threading.active_count() <= before)
