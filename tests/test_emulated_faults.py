"""Faults that the emulator plays: of pulls, of starting, of runners."""

from __future__ import annotations

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
