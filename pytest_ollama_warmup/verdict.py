"""What a test does whose model is not ready, and how that is reported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_ollama_warmup.roles import NEEDED, is_worker

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ollama_warmup.warmup.plan import Verdict

_HERE = str(Path(__file__).parent)


NOT_READY = pytest.StashKey["Verdict"]()


def enforce(verdict: Verdict, session: pytest.Session) -> NoReturn:
    """Skip the test, fail it, or end the run."""
    if verdict.policy == "skip":
        pytest.skip(verdict.message)
    if verdict.policy == "exit":
        if not is_worker(session.config):
            pytest.exit(f"ollama: {verdict.message}", returncode=2)
        # pytest.exit() in a worker is an internal error of xdist.
        session.shouldfail = f"ollama: {verdict.message}"
    pytest.fail(verdict.message, pytrace=False)


def watch(config: pytest.Config) -> None:
    """From now on look at each test's needs, and mend the reports of those that cannot run.

    Registered only where a test needs a model: a hook around every report is felt in large suites.
    """
    if NEEDED not in config.stash:
        config.stash[NEEDED] = True
        config.pluginmanager.register(_Reports(), "ollama_warmup_reports")


class _Reports:
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        _mend(report, item)
        return report


def _mend(report: pytest.TestReport, item: pytest.Item) -> None:
    """Report a test whose model is not ready where the test is, also when it is to fail."""
    verdict = item.stash.get(NOT_READY, None)
    if report.skipped and isinstance(report.longrepr, tuple):
        path, _, reason = report.longrepr
        if path.startswith(_HERE):
            # pytest names the line that called skip(): ours.
            path, line, _ = item.location
            report.longrepr = (str(item.config.rootpath / path), (line or 0) + 1, reason)
    elif verdict is not None and report.when == "setup" and hasattr(report, "wasxfail"):
        # An expected failure is one of the test, not of the server.
        del report.wasxfail
        report.outcome = "failed"
        report.longrepr = verdict.message
