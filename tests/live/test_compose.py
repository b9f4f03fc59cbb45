"""The Compose example on a real server: the command of each service, in the order they start."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.recipes import COMPOSE, CURL, Machine, Service, services, stand_ins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.live.conftest import StartServer
    from tests.live.provide import Provided
    from tests.live.registry import Registry
    from tests.live.server import RealServer

SUITE = """
import json, os, urllib.request
import pytest

@pytest.mark.requires_model
def test_warm(ollama_host, ollama_model):
    assert os.environ["OLLAMA_HOST"] == ollama_host
    with urllib.request.urlopen(ollama_host + "/api/ps") as answer:
        assert [ollama_model] == [model["name"] for model in json.load(answer)["models"]]
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    folder = tmp_path / "suite"
    folder.mkdir()
    stubs = stand_ins(tmp_path / "bin", "pip")
    with Machine(folder, [stubs], tmp_path / "installed") as machine:
        yield machine


class Up:
    """``docker compose up``, one service at a time, on a server that answers for ``ollama``."""

    def __init__(self, machine: Machine, server: RealServer, *files: Path, **lists: str) -> None:
        self.machine = machine
        self.server = server
        self.services = services(*files, environ=lists)

    def start(self, name: str) -> subprocess.Popen[str]:
        service = self.services[name]
        return self.machine.start(self._command(service), self._environment(service))

    def run(self, name: str) -> int:
        return self.machine.finish(self.start(name))

    def _command(self, service: Service) -> list[str]:
        *words, script = service.command
        # The registry of the tests has no TLS; names of curl's variant cannot say so.
        plain = r"\"stream\": false}"
        return [*words, script.replace(plain, rf"\"insecure\": true, {plain}")]

    def _environment(self, service: Service) -> dict[str, str]:
        env = dict(service.environment)
        env["OLLAMA_HOST"] = env["OLLAMA_HOST"].replace("http://ollama:11434", self.server.url)
        return env


def stored(server: RealServer) -> list[str]:
    return sorted(model["name"] for model in server.get("/api/tags")["models"])


@pytest.mark.parametrize("one_list", [True, False], ids=["one list", "two lists"])
@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, CURL]], ids=["pip", "curl"])
def test_models_are_pulled_then_loaded_then_tests_run(
    machine: Machine,
    start_server: StartServer,
    registry: Registry,
    files: list[Path],
    one_list: bool,
) -> None:
    chat, embed = registry.name("completion"), registry.name("embed")
    # What the curl variant cannot write.
    insecure = "" if CURL in files else ",insecure=true"
    lists = {"OLLAMA_MODELS": f"{chat}{insecure} {embed}{insecure}"}
    if not one_list:
        lists = {
            "OLLAMA_MODELS": f"{embed}{insecure}",
            "OLLAMA_PRELOAD_MODELS": f"{chat}{insecure}",
        }
    server = start_server(**services(*files, environ={})["ollama"].environment)
    up = Up(machine, server, *files, **lists)

    assert 0 == up.run("model_puller"), machine.output
    assert sorted([chat, embed]) == stored(server)
    assert [] == server.loaded()

    pulls = server.calls("/api/pull")
    assert 0 == up.run("model_preloader"), machine.output
    warm = [chat, embed] if one_list else [chat]
    assert sorted(warm) == sorted(server.loaded())
    # The year 2300 and later: until the server ends.
    for model in server.get("/api/ps")["models"]:
        assert model["expires_at"] > "2300"
    assert (len(warm), pulls) == (server.loads(), server.calls("/api/pull"))

    if not one_list:
        (machine.folder / "test_warm.py").write_text(SUITE, "utf-8")
        assert 0 == up.run("tests"), machine.output
        assert 1 == server.loads()
    installs = 0 if CURL in files else 2
    asked = machine.installed.read_text("utf-8") if machine.installed.exists() else ""
    assert asked == "pip install --quiet pytest-ollama-warmup\n" * (installs + (not one_list))


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, CURL]], ids=["pip", "curl"])
def test_a_model_that_nobody_has_stops_what_comes_after(
    machine: Machine, server: RealServer, registry: Registry, files: list[Path]
) -> None:
    name = registry.name("nobody")
    up = Up(
        machine, server, *files, OLLAMA_MODELS=name if CURL in files else f"{name},insecure=true"
    )
    assert 0 != up.run("model_puller")
    assert "file does not exist" in machine.output
    machine.output = ""
    assert 0 != up.run("model_preloader")
    assert name in machine.output
    # Compose does not start them now; on their own they fail too, and skip nothing.
    (machine.folder / "test_warm.py").write_text(SUITE, "utf-8")
    assert 1 == up.run("tests"), machine.output


def test_curl_waits_for_the_server_and_asks_no_registry_for_what_is_there(
    machine: Machine, server: RealServer, own_registry: Registry
) -> None:
    up = Up(machine, server, COMPOSE, CURL, OLLAMA_MODELS=own_registry.name("completion"))
    assert 0 == up.run("model_puller"), machine.output
    server.stop()
    asked = len(own_registry.requests)
    helpers = [up.start("model_puller"), up.start("model_preloader")]
    time.sleep(1.5)
    assert [None, None] == [helper.poll() for helper in helpers]
    server.restart()
    assert [0, 0] == [machine.finish(helper) for helper in helpers], machine.output
    assert asked == len(own_registry.requests)
    assert "is local" in machine.output


def test_curl_has_no_time_limit() -> None:
    assert not re.search(r"--max-time|--speed-time|\s-m\s", CURL.read_text("utf-8"))


def test_the_health_check_tells_whether_the_server_answers(
    parts: Provided, server: RealServer, tmp_path: Path
) -> None:
    how, name, *arguments = services(COMPOSE, environ={})["ollama"].raw["healthcheck"]["test"]
    assert ("CMD", "ollama") == (how, name)

    def check() -> int:
        # As in the image, whose server listens on all addresses.
        env = {**os.environ, "HOME": str(tmp_path), "OLLAMA_HOST": f"0.0.0.0:{server.port}"}
        command = [str(parts.ollama), *arguments]
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode

    assert 0 == check()
    server.stop()
    assert 0 != check()
    server.restart()
    assert 0 == check()
