"""Which models fit into the server's memory together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.answers import ModelInfo, Resident
from pytest_ollama_warmup.warmup.gate import Gate
from pytest_ollama_warmup.warmup.plan import Target
from pytest_ollama_warmup.warmup.room import Room
from pytest_ollama_warmup.warmup.spec import parse_specs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path, Gate(tmp_path, 1.0))


def target(text: str) -> Target:
    (spec,) = parse_specs(text, "x")
    return Target(spec, "from --ollama-preload")


def info(weights: str, parameters: str = "") -> ModelInfo:
    return ModelInfo(("completion",), "", weights, parameters)


def loaded(*names: str) -> list[Resident]:
    return [Resident(f"{name}:latest", name * 8, 1, 4096, 300.0) for name in names]


def reason(room: Room, text: str, weights: str = "", parameters: str = "") -> str:
    return room.reason_to_leave_out(target(text), info(weights or text, parameters))


def test_with_nothing_known_everything_is_loaded(room: Room) -> None:
    assert "" == reason(room, "a")
    room.add(target("a"), info("a"), loaded("a"))
    assert "" == reason(room, "b")
    assert not room.is_short


def test_when_one_has_to_make_room_nothing_more_is_loaded(room: Room) -> None:
    room.add(target("a"), info("a"), loaded("a"))
    room.add(target("b"), info("b"), loaded("b"))
    assert {"b": ["a"]} == room.displaced
    assert room.is_short
    assert "there was no room for all of a and b" == reason(room, "c")


@pytest.mark.parametrize(
    ("second", "weights", "parameters", "left_out"),
    [
        # Another name for the same, and with the same parameters: they share one place in peace.
        ("twin", "w", "", False),
        ("twin", "w", "num_ctx 1024", True),
        ("twin", "other", "num_ctx 1024", False),
        ("a,num_ctx=512", "w", "", True),
        # A server that does not tell the weights still tells the name.
        ("a,num_ctx=512", "", "", True),
        ("twin", "", "num_ctx 1024", False),
    ],
)
def test_equal_weights_have_one_place(
    room: Room, second: str, weights: str, parameters: str, left_out: bool
) -> None:
    room.add(target("a"), info("w"), loaded("a"))
    found = room.reason_to_leave_out(target(second), info(weights, parameters))
    expected = "it has the weights of a, and the server keeps one at a time" if left_out else ""
    assert expected == found


def test_what_did_not_fit_in_the_last_run_is_left_out(room: Room) -> None:
    room.learn([["a:latest", "b:latest", "c:latest"]])
    assert room.is_short
    room.add(target("a"), info("a"), loaded("a"))
    assert "" == reason(room, "b")
    room.add(target("b"), info("b"), loaded("a", "b"))
    assert "it did not fit beside a and b in the last run" == reason(room, "c")
    # Another one was not among them.
    assert "" == reason(room, "d")


def test_a_model_that_is_listed_under_another_name_is_no_loss(room: Room) -> None:
    room.add(target("twin"), info("w"), loaded("a"))
    room.add(target("b"), info("b"), loaded("a", "b"))
    assert {} == room.displaced
