"""Which models fit into the server's memory together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.model_specs import parse_specs
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.responses import LoadedModel, ModelInfo
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import Target
from pytest_ollama_warmup.warmup.room_in_memory import Room, make_room
from pytest_ollama_warmup.warmup.run_directory import HostDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ollama_warmup.ollama.client import Client


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(HostDirectory(tmp_path, 1.0))


def target(text: str) -> Target:
    (spec,) = parse_specs(text, "x")
    return Target(spec, "from --ollama-preload")


def info(weights: str, parameters: str = "") -> ModelInfo:
    return ModelInfo(("completion",), "", weights, parameters)


def loaded(*names: str) -> list[LoadedModel]:
    return [LoadedModel(f"{name}:latest", name * 8, 1, 4096, 300.0) for name in names]


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
        # What the runner does not depend on, and what it has by itself.
        ("twin", "w", "temperature 0.5 stop <end>", False),
        ("twin", "w", "num_ctx     4096", False),
        ("twin,num_ctx=4096", "w", "num_ctx     1024", False),
        ("twin", "w", "num_gpu     0", True),
    ],
)
def test_equal_weights_have_one_place(
    room: Room, second: str, weights: str, parameters: str, left_out: bool
) -> None:
    room.add(target("a"), info("w"), loaded("a"))
    found = room.reason_to_leave_out(target(second), info(weights, parameters))
    expected = "it has the weights of a, and the server keeps one at a time" if left_out else ""
    assert expected == found


def test_a_context_that_is_learned_counts_like_an_option(room: Room) -> None:
    room.add(target("a")._replace(learned=1024), info("w"), loaded("a"))
    found = room.reason_to_leave_out(target("b"), info("w"))
    assert "it has the weights of a, and the server keeps one at a time" == found
    assert "" == room.reason_to_leave_out(target("b")._replace(learned=4096), info("w"))


def test_a_model_that_goes_for_its_own_weights_says_nothing_of_room(room: Room) -> None:
    room.add(target("a"), info("w"), loaded("a"))
    # With an adapter, which its parameters do not show.
    room.add(target("b"), info("w"), loaded("b"))
    assert {} == room.displaced
    assert "" == reason(room, "c")


def test_making_room_counts_equal_weights_as_one(client: Client, ollama: Emulator) -> None:
    for name in "bd":
        ollama.add(ScriptedModel(name, present=True, digest=name * 64))
    for name, num_ctx in (("a1", None), ("a2", 1024)):
        ollama.add(ScriptedModel(name, present=True, weights="w" * 64, num_ctx=num_ctx))
    for name in ("a1", "b", "a2"):
        client.load(name, "generate", prompt="", options={}, keep_alive=None, limit_s=10.0)
    known = {}
    for name in ("a1", "b", "a2"):
        info = client.show(name)
        assert info is not None
        known[name] = Outcome(key=name, model=name, status="ready", weights=info.weights)
    # All that can be in memory at once is there: nothing has lacked room so far.
    make_room(client, {"d"}, [{"b"}], list(known.values()))
    assert {"a2:latest", "b:latest"} == {one.name for one in client.loaded_models()}


def test_what_did_not_fit_in_the_last_run_is_left_out(room: Room) -> None:
    room.learn([["a:latest", "b:latest", "c:latest"]])
    assert room.is_short
    room.add(target("a"), info("a"), loaded("a"))
    assert "" == reason(room, "b")
    room.add(target("b"), info("b"), loaded("a", "b"))
    assert "it did not fit together with a and b in the last run" == reason(room, "c")
    # Another one was not among them.
    assert "" == reason(room, "d")


def test_a_model_that_is_listed_under_another_name_is_no_loss(room: Room) -> None:
    room.add(target("twin"), info("w"), loaded("a"))
    room.add(target("b"), info("b"), loaded("a", "b"))
    assert {} == room.displaced
