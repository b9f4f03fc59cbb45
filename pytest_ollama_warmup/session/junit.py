"""What a JUnit file says of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.session.state import directory_of
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pytest_ollama_warmup.warmup.outcome import Outcome


def note_properties(config: pytest.Config) -> None:
    """Give a JUnit file the versions of the servers and the digests of the models."""
    properties: dict[str, str] = {}
    for host in directory_of(config).hosts():
        if host.server is not None and host.server.ready:
            properties["ollama_version"] = clean(" ".join(host.server.notes))
        for outcome in host.outcomes():
            value = f"sha256:{outcome.digest}" if outcome.digest else outcome.status
            properties[f"ollama_model {clean(outcome.title)}"] = value
    for plugin in junit_plugins(config):
        for name, value in properties.items():
            plugin.add_global_property(name, value)


def note_failure(config: pytest.Config, outcome: Outcome, *, started: bool) -> None:
    """Give a JUnit file an errored test case: an empty one would look green.

    Where pytest has not *started* its session, it would not write the file either.
    """
    name = f"ollama-preload[{outcome.title}]"
    where = ("ollama-preload", None, name)
    failed = pytest.TestReport(name, where, {}, "failed", outcome.error, "setup")
    # A test case is written when its teardown is over.
    over = pytest.TestReport(name, where, {}, "passed", None, "teardown")
    for plugin in junit_plugins(config):
        if not started:
            plugin.pytest_sessionstart()
        plugin.pytest_runtest_logreport(failed)
        plugin.pytest_runtest_logreport(over)
        if not started:
            plugin.pytest_sessionfinish()


def junit_plugins(config: pytest.Config) -> Iterator[Any]:
    """Yield what writes a JUnit file in this run, if anything does: its type has no public name."""
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(plugin, "add_global_property"):
            yield plugin
