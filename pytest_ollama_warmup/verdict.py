"""What a test does whose model is not ready, and how that is reported."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_ollama_warmup.marks import ELSEWHERE_FIXTURE, want_of
from pytest_ollama_warmup.ollama.replaced import as_error, is_for_us, suppressing
from pytest_ollama_warmup.roles import (
    NEEDED,
    OllamaWarmupWarning,
    address_differs,
    is_worker,
    run_of,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ollama_warmup.warmup.plan import Verdict, Want

_HERE = str(Path(__file__).parent)
# As pytest says that a session fixture asks for one that belongs to a test.
_SCOPE = re.compile(r"ScopeMismatch: .*function scoped fixture ollama_(model|options)\b")


NOT_READY = pytest.StashKey["Verdict"]()
# What was found before the test began, for its set-up to act on.
_FOUND = pytest.StashKey["Verdict | None"]()
_UNSEEN = pytest.StashKey[str]()
_WARNED = pytest.StashKey[bool]()
_MOVED = pytest.StashKey[bool]()


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
        config.pluginmanager.register(_Watch(), "ollama_warmup_watch")


def set_up(item: pytest.Item) -> None:
    """Skip or fail *item* whose model is not ready, or no longer."""
    # Not there for the second attempt of a test: what reruns tests does it within the protocol.
    if _FOUND not in item.stash:
        want, item.stash[_FOUND] = _want(item)
        if want is not None:
            item.stash[_FOUND] = _look(item, want)
    verdict = item.stash[_FOUND]
    del item.stash[_FOUND]
    if _UNSEEN in item.stash and _WARNED not in item.config.stash:
        item.config.stash[_WARNED] = True
        # Where warnings are errors: the test would run without us.
        with suppress(OllamaWarmupWarning):
            item.warn(OllamaWarmupWarning(item.stash[_UNSEEN]))
    if verdict is not None:
        item.stash[NOT_READY] = verdict
        enforce(verdict, item.session)


def _want(item: pytest.Item) -> tuple[Want | None, Verdict | None]:
    """Return what *item* wants of the run's own server, or why that cannot be known."""
    try:
        want = want_of(item)
    # A worker that raises out of a hook is respawned for ever.
    except Exception as exc:
        from pytest_ollama_warmup.warmup.plan import Verdict

        return None, Verdict("fail", str(exc))
    # Where the suite gives it another server, a fixture of ours asks that one.
    return (None if want is None or want.elsewhere else want), None


def _look(item: pytest.Item, want: Want) -> Verdict | None:
    """Return why *item* cannot run, after bringing what it needs and is not there."""
    from pytest_ollama_warmup.warmup.guard import CannotLook
    from pytest_ollama_warmup.warmup.plan import Verdict

    try:
        return run_of(item.config).verdict_now(want)
    except CannotLook as exc:
        item.stash[_UNSEEN] = f"cannot see whether models are still warm: {exc}"
    # A worker that raises out of a hook is respawned for ever.
    except BaseException as exc:
        if not is_for_us(exc):
            raise
        # The error of a stand-in for httpx needs a word of what it is.
        return Verdict("fail", str(as_error(exc, settings_of(item.config).host)))
    return None


def _slot(item: pytest.Item) -> AbstractContextManager[None]:
    if settings_of(item.config).slots.value is None:
        return nullcontext()
    return run_of(item.config).slot()


def _inside(item: pytest.Item) -> AbstractContextManager[None]:
    # In a single process nobody looks while a test runs.
    return run_of(item.config).inside() if is_worker(item.config) else nullcontext()


class _Watch:
    # First, a wrapper: outside of the test's own time, and of the timers of other plugins.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        want, item.stash[_FOUND] = _want(item)
        if want is None:
            return (yield)
        with ExitStack() as held:
            # A worker that raises out of a hook is respawned for ever: where a disk is full, the
            # test runs without its turn, as it would without us.
            with suppress(OSError):
                held.enter_context(_slot(item))
            item.stash[_FOUND] = _look(item, want)
            # And where what the client needs is replaced.
            with suppressing():
                held.enter_context(_inside(item))
            result = yield
            run_of(item.config).look_after(item.nodeid)
            return result

    # After set-up: a fixture may have changed the address, and takes it back at its end.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if ELSEWHERE_FIXTURE in getattr(item, "fixturenames", ()):
            return
        if _MOVED not in item.config.stash and (text := address_differs(item.config)):
            with suppress(Exception):
                if want_of(item) is not None:
                    item.config.stash[_MOVED] = True
                    item.warn(OllamaWarmupWarning(text))

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
    if report.failed and _SCOPE.search(str(report.longrepr)):
        report.sections.append(("ollama", "A fixture of a wide scope uses ollama_models.default."))
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
