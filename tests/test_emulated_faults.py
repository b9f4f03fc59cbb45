"""Faults that the emulator plays: of pulls, of starting, of runners."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pytest_ollama_warmup.ollama.emulator import ScriptedModel, script, store
from tests.test_emulator import LONG_S, A, Api, hanging, serving, wait_for

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


def test_a_download_can_stand_still_for_ever(clock: Clock) -> None:
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


# Deleting


def test_a_deleted_model_is_gone_and_can_be_pulled_anew() -> None:
    with serving(A, replace(A, name="b")) as api:
        api.load("a")
        assert 200 == api.http.request("DELETE", "/api/delete", json={"model": "a"}).status_code
        assert 404 == api.post("show", model="a").status_code
        assert ["b:latest"] == [one["name"] for one in api.get("/api/tags")["models"]]
        # What is loaded of it stays until its lease ends.
        assert ["a:latest"] == api.resident()
        assert "success" == api.lines("pull", model="a")[-1]["status"]
        missing = api.http.request("DELETE", "/api/delete", json={"model": "c"})
        assert (404, {"error": "model 'c' not found"}) == (missing.status_code, missing.json())


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


# Runners that die


def test_a_dead_runner_stays_listed_until_a_request_notices() -> None:
    with serving(A) as api:
        api.load()
        api.emulator.kill_runner("a")
        assert ["a:latest"] == api.resident()
        api.load()
        assert ["a:latest", "a:latest"] == api.loaded()


@pytest.mark.parametrize("stream", [False, True])
def test_a_runner_that_dies_at_work_ends_the_answer(stream: bool) -> None:
    words = "an error was encountered while running the model: unexpected EOF"
    with serving(replace(A, eval_s=1.0)) as api:
        answer = api.later("generate", model="a", prompt="Hi", stream=stream)
        wait_for(api.resident)
        # Before its first word the error would have a status.
        time.sleep(0.05)
        api.emulator.kill_runner("a")
        response = answer.result(30)
        assert (200 if stream else 500) == response.status_code
        assert {"error": words} == json.loads(response.text.splitlines()[-1])
        assert api.ask("generate", model="a", prompt="Hi", stream=False)["response"]


# OpenAI's API


def v1(api: Api, path: str, **body: object) -> httpx.Response:
    return api.http.post(f"/v1/{path}", json=body)


HELLO = [{"role": "user", "content": "Say hello"}]


def test_a_chat_completion_is_one_choice_and_counts_tokens() -> None:
    with serving(A) as api:
        made = v1(api, "chat/completions", model="a", messages=HELLO, max_tokens=3).json()
    (choice,) = made["choices"]
    assert ("chat.completion", "a") == (made["object"], made["model"])
    assert ("length", "I am an") == (choice["finish_reason"], choice["message"]["content"])
    assert 3 == made["usage"]["completion_tokens"]
    assert made["usage"]["total_tokens"] == 3 + made["usage"]["prompt_tokens"]


def test_a_chat_completion_streams_events() -> None:
    with serving(A) as api:
        response = v1(api, "chat/completions", model="a", messages=HELLO, stream=True)
    assert "text/event-stream" == response.headers["content-type"]
    *events, last, done, _ = response.text.split("\n\n")
    parts = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert "I am an emulator" in "".join(part["delta"]["content"] for part in parts)
    assert "stop" == json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"]
    assert "data: [DONE]" == done


def test_embeddings_are_a_list_in_the_order_of_the_texts() -> None:
    embed = ScriptedModel("embed", present=True, capabilities=("embedding",))
    with serving(embed) as api:
        made = v1(api, "embeddings", model="embed", input=["one", "two"]).json()
        native = api.ask("embed", model="embed", input=["one", "two"])["embeddings"]
    assert [0, 1] == [one["index"] for one in made["data"]]
    assert native == [one["embedding"] for one in made["data"]]


@pytest.mark.parametrize(
    ("status", "kind", "path", "body"),
    [
        (404, "not_found_error", "chat/completions", {"model": "x", "messages": HELLO}),
        (400, "invalid_request_error", "chat/completions", {"model": "a", "messages": []}),
        (400, "invalid_request_error", "chat/completions", {"model": "embed", "messages": HELLO}),
        (404, "not_found_error", "embeddings", {"model": "x", "input": "a"}),
        (400, "invalid_request_error", "embeddings", {"model": "embed", "input": []}),
        (501, "api_error", "embeddings", {"model": "a", "input": "a"}),
    ],
)
def test_errors_come_as_openai_has_them(
    status: int, kind: str, path: str, body: dict[str, Any]
) -> None:
    with serving(A, ScriptedModel("embed", present=True, capabilities=("embedding",))) as api:
        response = v1(api, path, **body)
    assert (status, kind) == (response.status_code, response.json()["error"]["type"])


def test_openai_clients_cannot_choose_runner_options() -> None:
    with serving(A) as api:
        api.load(options={"num_ctx": 2048})
        v1(api, "chat/completions", model="a", messages=HELLO, options={"num_ctx": 2048})
        assert [2048, 4096] == [load.options["num_ctx"] for load in api.emulator.loads]
