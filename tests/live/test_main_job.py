"""The main job on a real server: one pull, one load, every test warm."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import UserSuite
    from tests.live.registry import Registry
    from tests.live.server import RealServer

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"], ["-n4"]], ids=["n0", "n2", "n4"])
BOUND_S = 30.0
# What a user's test does: a real generation, by the address in the environment.
CHAT = """
    import json, os, urllib.request, pytest

    # host:port, or a URL where the user has given one.
    HOST = "http://" + os.environ["OLLAMA_HOST"].removeprefix("http://")

    def generate(model, **options):
        body = {"model": model, "prompt": "Say hello.", "stream": False, "options": options}
        request = urllib.request.Request(HOST + "/api/generate", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["response"]

    @pytest.mark.requires_model("MODEL")
    @pytest.mark.parametrize("n", range(8))
    def test_chat(ollama_model, n):
        assert generate(ollama_model, seed=n)
"""


def until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def bring(server: RealServer, registry: Registry, model: str, name: str) -> None:
    """Put a tiny model on the server under a short name, cold."""
    server.pull(registry.name(model))
    server.post("/api/copy", {"source": registry.name(model), "destination": name})


@WORKERS
def test_a_missing_model_is_pulled_and_loaded_once_and_every_test_is_warm(
    suite: UserSuite, server: RealServer, own_registry: Registry, workers: list[str]
) -> None:
    model = own_registry.name("completion")
    suite.write({"test_chat.py": CHAT.replace("MODEL", model)})
    run = suite.run(f"--ollama-preload={model},insecure=true", *workers)
    assert run.counts == {"passed": 8}
    assert len([one for one in own_registry.requests if "/manifests/" in one.path]) == 1
    assert (server.calls("/api/pull"), server.loads(), server.calls("/api/show")) == (1, 1, 2)


@WORKERS
def test_a_marked_model_that_is_there_is_loaded_once(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    suite.write({"test_chat.py": CHAT.replace("MODEL", "llama3.2:1b")})
    run = suite.run(*workers)
    assert run.counts == {"passed": 8}
    assert server.loads() == 1
    assert server.calls("/api/pull") == 1  # ours


def test_without_the_plugin_an_impatient_client_aborts_the_load(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    # The reference: without the plugin's work a client gives up before the model is there, which
    # takes 0.25 s at least: Ollama's own pause between two looks at a new runner.
    bring(server, registry, "completion", "llama3.2:1b")
    impatient = CHAT.replace("MODEL", "llama3.2:1b").replace("timeout=60", "timeout=0.2")
    suite.write({"test_chat.py": impatient})
    run = suite.run("--ollama-off", "-x")
    assert run.counts == {"failed": 1}
    assert "timed out" in run.out


def test_options_of_the_spec_reach_the_server(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    suite.write(
        {
            "test_chat.py": CHAT.replace("MODEL", "llama3.2:1b,num_ctx=2048").replace(
                "seed=n", "num_ctx=2048"
            )
        }
    )
    assert suite.run().counts == {"passed": 8}
    assert [one["context_length"] for one in server.get("/api/ps")["models"]] == [2048]
    assert server.loads() == 1


def test_an_embedding_model_is_warmed_by_embedding(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "embed", "embed:a")
    suite.write({"test_it.py": "def test_it(ollama_model): assert 'embed:a' == ollama_model\n"})
    run = suite.run("--ollama-preload=embed:a")
    assert run.counts == {"passed": 1}
    assert server.loaded() == ["embed:a"]


def test_the_keep_alive_is_as_asked_and_never_shortened(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    suite.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    suite.run("--ollama-preload=llama3.2:1b", "--ollama-keep-alive=-1")
    assert server.get("/api/ps")["models"][0]["expires_at"].startswith("23")
    suite.run("--ollama-preload=llama3.2:1b", "--ollama-keep-alive=10m")
    assert server.get("/api/ps")["models"][0]["expires_at"].startswith("23")


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
def test_ctrl_c_during_a_pull_makes_the_server_stop_it(
    suite: UserSuite, own_registry: Registry, workers: list[str]
) -> None:
    own_registry.rate = 1e6
    model = own_registry.name("big")
    suite.write({"test_it.py": "def test_it(): pass\n"})
    process = suite.start(f"--ollama-preload={model},insecure=true", *workers)
    until(lambda: any(one.sent > 1e5 for one in own_registry.requests))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 2
    assert f"interrupted: {model} pulling" in out
    # The download ended with its last client, long before its 35 MB.
    sent = sum(one.sent for one in own_registry.requests)
    time.sleep(1.0)
    assert sent + 1e6 > sum(one.sent for one in own_registry.requests)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
def test_a_server_killed_during_a_pull_ends_the_run(
    suite: UserSuite, server: RealServer, own_registry: Registry, workers: list[str]
) -> None:
    own_registry.rate = 1e6
    model = own_registry.name("big")
    suite.write({"test_it.py": "def test_it(): pass\n"})
    arguments = [f"--ollama-preload={model},insecure=true", "--ollama-wait=1"]
    process = suite.start(*arguments, *workers)
    until(lambda: any(one.sent > 1e5 for one in own_registry.requests))
    server.kill()
    out, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 2
    assert f"{model} (from --ollama-preload) could not be pulled: connection lost" in out


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
def test_ctrl_c_during_a_load_makes_the_server_give_it_up(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    suite.write({"test_chat.py": CHAT.replace("MODEL", "llama3.2:1b")})
    process = suite.start(*workers)
    until(lambda: len(server.processes()) > 1)
    # A load takes 0.27 s here: held on, it cannot be over before the signal comes.
    for runner in server.processes():
        if runner != server.pid:
            os.kill(runner, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=BOUND_S)
    assert 2 == process.returncode
    assert "interrupted: llama3.2:1b loading" in out
    until(lambda: [server.pid] == server.processes())
    assert [] == server.loaded()
