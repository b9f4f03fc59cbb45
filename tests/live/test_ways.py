"""The same suite on a server that is there, on one of the run's own, and on a pool of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import UserSuite
from tests.live.server import RealServer
from tests.live.test_main_job import CHAT, bring

if TYPE_CHECKING:
    from tests.live.conftest import StartServer
    from tests.live.provide import Provided
    from tests.live.registry import Registry

MODEL = "llama3.2:1b"


@pytest.fixture
def existing(start_server: StartServer, registry: Registry) -> list[str]:
    server = start_server()
    bring(server, registry, "completion", MODEL)
    return [f"--ollama-host={server.url}"]


@pytest.fixture
def managed(
    parts: Provided, registry: Registry, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    store = pytester.path / "store"
    with RealServer(parts.ollama, models=store) as server:
        bring(server, registry, "completion", MODEL)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    monkeypatch.setenv("HOME", str(pytester.path))
    monkeypatch.setenv("OLLAMA_NO_CLOUD", "1")
    return ["--ollama-serve", f"--ollama-serve-command='{parts.ollama}' serve"]


@pytest.fixture
def pool(start_server: StartServer, registry: Registry) -> list[str]:
    servers = [start_server() for _ in range(2)]
    for server in servers:
        bring(server, registry, "completion", MODEL)
    return [f"--ollama-host={','.join(server.url for server in servers)}"]


@pytest.mark.parametrize("listed", [[], [f"--ollama-preload={MODEL}"]], ids=["marked", "listed"])
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
@pytest.mark.parametrize("way", ["existing", "managed", "pool"])
def test_every_way_has_the_same_outcome(
    parts: Provided,
    request: pytest.FixtureRequest,
    pytester: pytest.Pytester,
    way: str,
    workers: list[str],
    listed: list[str],
) -> None:
    # The parts first: they are found by HOME, which pytester changes.
    assert parts.ollama.exists()
    suite = UserSuite(pytester)
    suite.write({"test_chat.py": CHAT.replace("MODEL", MODEL)})
    flags: list[str] = request.getfixturevalue(way)
    run = suite.run("-v", *flags, *workers, *listed)
    assert run.counts == {"passed": 8}
    assert any(line.startswith(f"✓ {MODEL} ") for line in run.table), run.out
    assert "cold" not in run.out
