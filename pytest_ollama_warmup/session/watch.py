"""Looks at the server's memory between tests that do not say what they need.

Each worker of such a suite takes them: nothing that is not needed for it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import tolerating
from pytest_ollama_warmup.ollama.replaced_httpx import suppressing
from pytest_ollama_warmup.session.state import (
    directory_of,
    process_name,
    settings_of,
    wants_report,
    warmers_of,
)
from pytest_ollama_warmup.warmup.looks import LookLog

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.responses import LoadedModel

LOOK_EVERY_S = 0.25


def watch_unmarked(config: pytest.Config) -> None:
    """From now on look before the first test, after tests, and at the end of the run.

    At most four times a second, and only where models are being watched by then.
    """
    config.pluginmanager.register(_Glances(config), "ollama_warmup_glances")
    if wants_report(config):
        from pytest_ollama_warmup.session.note_times import note_times

        note_times(config)


class _Glances:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._log: LookLog | None = None
        self._tests: list[str] = []
        self._next_look = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        if self._log is None:
            # No test has asked for it: whatever is wrong must not be its matter.
            with tolerating("to begin to watch tests without a mark"):
                self._log = self._begin()
            if self._log is None:
                self._end()
            self._look()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._tests.append(nodeid)
        if clock.monotonic() >= self._next_look:
            self._look()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._look()

    def _begin(self) -> LookLog | None:
        directory = directory_of(self._config)
        if not directory.watched.exists():
            return None
        host = directory.host(settings_of(self._config).host.url)
        return LookLog(host, process_name(self._config))

    def _look(self) -> None:
        if self._log is None:
            return
        sent, loaded = clock.monotonic(), None
        with suppressing():
            loaded = self._loaded_models()
        # Of two or more tests nobody knows which it was: the others need not be named.
        self._log.write("between", sent, tests=self._tests[:2], loaded=loaded)
        self._tests.clear()
        self._next_look = clock.monotonic() + LOOK_EVERY_S
        if loaded is None:
            # Nobody has said that the server is needed, and one that hangs would hold up each test.
            self._end()

    def _end(self) -> None:
        self._log = None
        self._config.pluginmanager.unregister(self)

    def _loaded_models(self) -> list[LoadedModel]:
        from pytest_ollama_warmup.ollama import plain_look

        settings = settings_of(self._config)
        return plain_look.loaded(
            settings.host,
            settings.api_key,
            settings.headers.value,
            lambda: warmers_of(self._config).own.client(),
        )
