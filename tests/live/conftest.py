"""Fixtures of the tests against a real server: the parts, a registry, servers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.conftest import UserSuite
from tests.live.provide import Missing, Provided, provide
from tests.live.registry import Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class StartServer(Protocol):
    def __call__(self, **env: str) -> RealServer: ...


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        # The first test waits for the parts to be built; only its body counts.
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(autouse=True)
def _started_as_by_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork no run that meets a real server."""
    monkeypatch.setattr(UserSuite, "run", partialmethod(UserSuite.run, fresh=True))


@pytest.fixture(scope="session")
def parts(pytestconfig: pytest.Config) -> Provided:
    """The real parts; without them tests are skipped, on CI they fail."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with ExitStack() as shown:
        # Minutes of building must not look like a hang.
        if capture is not None:
            shown.enter_context(capture.global_and_fixture_disabled())
        try:
            return provide()
        except Missing as exc:
            missing = str(exc)
    # Outside of the handler, or pytest shows the same line twice.
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def registry(parts: Provided) -> Iterator[Registry]:
    """Registry of the tiny models for all tests; it does nothing bad."""
    with Registry(parts.models) as registry:
        yield registry


@pytest.fixture
def own_registry(parts: Provided) -> Iterator[Registry]:
    """Registry of the tiny models for this test, to be slowed down or broken."""
    with Registry(parts.models) as registry:
        yield registry


@pytest.fixture(scope="session")
def real_server(parts: Provided) -> Iterator[RealServer]:
    """Server for all tests, with the models that any of them pulled."""
    with RealServer(parts.ollama) as server:
        yield server


@pytest.fixture
def bring(registry: Registry, real_server: RealServer) -> Callable[[str], str]:
    """Pull a tiny model to ``real_server`` and return its full name."""

    def bring(model: str) -> str:
        real_server.pull(registry.name(model))
        return registry.name(model)

    return bring


@pytest.fixture
def start_server(parts: Provided) -> Iterator[StartServer]:
    """Start an empty server for this test, with these variables in its environment."""
    with ExitStack() as servers:

        def start(**env: str) -> RealServer:
            return servers.enter_context(RealServer(parts.ollama, env=env))

        yield start


@pytest.fixture
def server(start_server: StartServer) -> RealServer:
    """A cold server without models, for one test."""
    return start_server()


@pytest.fixture
def suite(
    pytester: pytest.Pytester, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> UserSuite:
    """An empty suite whose OLLAMA_HOST is the server."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    return UserSuite(pytester)
