"""A real server keeps the contract with the emulator."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract import *  # noqa: F403  these are the tests
from tests.contract import until
from tests.live.registry import Faults, Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.live.provide import Provided

# The tiny models behind the names of the contract.
MODELS = {
    "a": "completion",
    "b": "completion-b",
    "c": "completion-c",
    "d": "completion-d",
    "endless": "endless",
    "slow": "tools",
    "think": "think",
    "embed": "embed",
    "broken": "broken",
}
FAR = "big"


class RealWorld:
    """A server with the tiny models under the names of the contract."""

    def __init__(self, server: RealServer, registry: Registry) -> None:
        self._server, self._registry = server, registry
        self.far, self.unknown = registry.name(FAR), registry.name("nix")
        self.url = server.url

    def bring(self) -> None:
        """Pull each model, and leave it only the name of the contract."""
        for name, source in MODELS.items():
            pulled = self._registry.name(source)
            self._server.pull(pulled)
            self._server.post("/api/copy", {"source": pulled, "destination": name})
            self._server.delete(pulled)

    def make_cold(self) -> None:
        """Undo what a test may have left."""
        self._registry.rate, self._registry.faults = None, Faults()
        if not self._server.processes():
            self._server.restart()
        if self._server.loaded():
            # What is loaded may have lost its name: the weights count, whoever names them.
            for name in MODELS:
                self._server.unload(name)
            until(lambda: not self._server.loaded())
        for model in self._server.get("/api/tags")["models"]:
            if model["name"].removesuffix(":latest") not in MODELS:
                self._server.delete(model["name"])

    def weights(self, name: str) -> str:
        shown = self._server.post("/api/show", {"model": name})
        found = re.search(r"^FROM (.+)$", shown["modelfile"], re.MULTILINE)
        assert found is not None
        return found[1]

    def add_variant(self, name: str, base: str, num_ctx: int) -> None:
        made = {"model": name, "from": base, "parameters": {"num_ctx": num_ctx}, "stream": False}
        self._server.post("/api/create", made)

    def loads(self) -> int:
        return self._server.log_text().count('msg="loading model via llama-server"')

    def throttle(self, rate: float | None) -> None:
        self._registry.rate = rate

    def stall(self, at: int | None, seconds: float | None = None) -> None:
        self._registry.faults = Faults(stall_at=at, stall_s=seconds)

    def kill_runner(self, name: str) -> None:
        weights = self.weights(name)
        for pid in self._server.processes():
            if weights in Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0"):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.restart()


@pytest.fixture(scope="module")
def contract_server(
    parts: Provided, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealWorld]:
    models = tmp_path_factory.mktemp("models")
    # Without the parameters beside them, so that runner options are the server's own.
    for source in [*MODELS.values(), FAR]:
        shutil.copy(parts.models / f"{source}.gguf", models)
        if (template := parts.models / f"{source}.template").exists():
            shutil.copy(template, models)
    with Registry(models) as registry, RealServer(parts.ollama) as server:
        world = RealWorld(server, registry)
        world.bring()
        yield world


@pytest.fixture
def world(contract_server: RealWorld) -> Iterator[RealWorld]:
    yield contract_server
    contract_server.make_cold()
