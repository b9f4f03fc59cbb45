"""When each test of this process ran, for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.session.marks import want_of
from pytest_ollama_warmup.session.state import directory_of, process_name, settings_of
from pytest_ollama_warmup.warmup.ran_tests import OtherTests, RanLog, RanTest

if TYPE_CHECKING:
    from collections.abc import Generator

# Tests that name no model are written down together, unless so many seconds lie between them.
GAP_S = 1.0
OUTCOMES = ("passed", "failed", "skipped")
_TIMES = "ollama_warmup_times"


def note_times(config: pytest.Config) -> None:
    """From now on write down when tests run."""
    if not config.pluginmanager.has_plugin(_TIMES):
        config.pluginmanager.register(_Times(config), _TIMES)


class _Times:
    """Hooks around each test.

    They are registered after those that wait for models, so that they see the waiting too.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._by = process_name(config)
        self._log = RanLog(directory_of(config).ran_tests(self._by))
        self._keys: tuple[str, ...] | None = None
        self._entered = self._began = 0.0
        self._outcome = ""
        # Tests that name no model: since when, until when, and how many.
        self._others = (0.0, 0.0, 0)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._keys, self._outcome = _keys_of(item), ""
        self._entered, self._began = clock.time(), 0.0
        if self._keys is None:
            result = yield
            self._note_other(self._entered, clock.time())
            return result
        self._write_others()
        result = yield
        if self._began:
            self._log.end(item.nodeid, clock.time() - self._began, self._outcome)
        return result

    # By then the test has waited for its models, and its place.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        # What reruns tests begins more than once.
        if self._keys is not None and not self._began:
            self._began = clock.time()
            url = settings_of(self._config).host.url
            waited_s = self._began - self._entered
            self._log.begin(RanTest(nodeid, self._by, url, self._keys, waited_s, self._began))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A failure in one of the three parts is one of the test. Plugins have other outcomes too.
        if report.outcome in ("failed", "skipped") or report.when == "setup":
            self._outcome = report.outcome if report.outcome in OUTCOMES else ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._write_others()

    def _note_other(self, begin: float, end: float) -> None:
        since, until, number = self._others
        if number and begin - until > GAP_S:
            self._write_others()
            since, number = begin, 0
        self._others = (since if number else begin, end, number + 1)

    def _write_others(self) -> None:
        since, until, number = self._others
        if number:
            url = settings_of(self._config).host.url
            self._log.others(OtherTests(self._by, url, since, until - since, number))
        self._others = (0.0, 0.0, 0)


def _keys_of(item: pytest.Item) -> tuple[str, ...] | None:
    """Return the models that a test names, by key; None for one that needs no model."""
    from pytest_ollama_warmup.warmup.plan import resolve

    try:
        if (want := want_of(item)) is not None:
            return tuple(spec.key for spec in resolve(want, settings_of(item.config).listed))
    # Whatever is wrong with its mark, its set-up says.
    except Exception:
        LOG.debug("nobody knows which models %s needs", item.nodeid, exc_info=True)
    return None
