"""The emulator keeps the contract with a real server."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.contract import *  # noqa: F403  these are the tests

if TYPE_CHECKING:
    from collections.abc import Iterator

A = ScriptedModel("a", present=True, digest="a" * 64, context_length=4096)
FAR = ScriptedModel("far", size=35_000_000, pull_retry_s=1.0)
MODELS = [
    A,
    *(replace(A, name=name, digest=name * 64) for name in "bcd"),
    replace(A, name="endless", digest="", eval_s=600.0),
    replace(A, name="slow", digest="", load_s=0.3),
    replace(A, name="think", digest="", capabilities=("completion", "thinking")),
    replace(A, name="embed", digest="", capabilities=("embedding",)),
    replace(A, name="broken", digest="", load_error="llama-server process has terminated"),
    FAR,
]


class EmulatedWorld:
    """An emulator of its own for each test."""

    far = "far"
    unknown = "nix"

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._far = FAR
        self.url = emulator.url

    def weights(self, name: str) -> str:
        return name

    def add_variant(self, name: str, base: str, num_ctx: int) -> None:
        found = self._emulator.store.find(base)
        assert found is not None
        self._emulator.add(replace(found, name=name, digest="", num_ctx=num_ctx))

    def loads(self) -> int:
        return len(self._emulator.loads)

    def throttle(self, rate: float | None) -> None:
        self._change(pull_rate=rate)

    def stall(self, at: int | None, seconds: float | None = None) -> None:
        # As long as a stall is shorter, the server does not interfere.
        retry_s = FAR.pull_retry_s if seconds is None else 30.0
        self._change(pull_stall_at=at, pull_stall_s=seconds, pull_retry_s=retry_s)

    def _change(self, **script: float | None) -> None:
        self._far = replace(self._far, **script)  # type: ignore[arg-type]
        there = self._emulator.store.find("far")
        self._emulator.add(replace(self._far, present=there is not None and there.present))

    def kill_runner(self, name: str) -> None:
        self._emulator.kill_runner(name)

    def kill(self) -> None:
        self._emulator.stop()

    def restart(self) -> None:
        self._emulator.start()


@pytest.fixture
def world() -> Iterator[EmulatedWorld]:
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(MODELS))
        yield EmulatedWorld(emulator)
        # Ends what still waits, should the test have failed.
        emulator.stop()
