"""Before each test: may it run? If not, it is skipped or fails, and its report says so."""

from __future__ import annotations

import re
import traceback
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_ollama_warmup.ollama.logs import LOG, tolerating
from pytest_ollama_warmup.ollama.replaced_httpx import as_error, is_for_us, suppressing
from pytest_ollama_warmup.session.address import address_differs
from pytest_ollama_warmup.session.mark_names import ELSEWHERE_FIXTURE
from pytest_ollama_warmup.session.marks import want_of
from pytest_ollama_warmup.session.state import (
    NEEDED,
    OllamaWarmupWarning,
    check_of,
    gates_of,
    is_worker,
    settings_of,
    wants_report,
    warmers_of,
)
from pytest_ollama_warmup.text import clean, explained

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from pytest_ollama_warmup.session.skipped_last_run import Gate
    from pytest_ollama_warmup.warmup.on_unavailable import Verdict
    from pytest_ollama_warmup.warmup.plan import Want

_HERE = str(Path(__file__).parent)
# As pytest says that a session fixture asks for one that belongs to a test.
_SCOPE = re.compile(r"ScopeMismatch: .*function scoped fixture ollama_(model|options)\b")


_OF_ONE_TEST = explained(
    "ollama_model and ollama_options belong to one test. In a fixture of a wider scope use "
    'ollama_models["MODEL"], or ollama_models.default for the first listed model.',
    "scope-mismatch",
)


class State:
    """What is known of one test, from before it begins until its set-up is reported."""

    def __init__(self) -> None:
        self.is_checked = False
        """Whether *verdict* is what was found before the test began, for its set-up to act on."""
        self.verdict: Verdict | None = None
        self.enforced: Verdict | None = None
        """Why the test was skipped, or failed, by the plugin."""
        self.unseen = ""
        """Why nobody can see whether its models are still warm."""
        self.gate: Gate | None = None
        """Where it is expected to skip, as it did in the last run."""
        self.was_looked_at = False
        self.has_models: bool | None = False
        """Whether its models are ready; None where they are left until it has passed its gate."""


_STATE = pytest.StashKey[State]()
_WARNED_UNSEEN = pytest.StashKey[bool]()
_WARNED_ADDRESS = pytest.StashKey[bool]()
# The test that was last seen at a gate.
_AT_GATE = pytest.StashKey[pytest.Item]()


def state_of(item: pytest.Item) -> State:
    """Return what is known of *item*."""
    if _STATE not in item.stash:
        item.stash[_STATE] = State()
    return item.stash[_STATE]


def enforce(verdict: Verdict, session: pytest.Session) -> NoReturn:
    """Skip the test, fail it, or end the run."""
    # pytest shows these reasons on one line.
    reason = verdict.message.replace("\n", " ")
    if verdict.policy == "skip":
        pytest.skip(reason)
    if verdict.policy == "exit":
        if not is_worker(session.config):
            pytest.exit(f"ollama: {reason}", returncode=2)
        # pytest.exit() in a worker is an internal error of xdist.
        session.shouldfail = f"ollama: {reason}"
    pytest.fail(verdict.message, pytrace=False)


def watch(config: pytest.Config) -> None:
    """From now on look at each test's needs, and mend the reports of those that cannot run.

    Registered only where a test needs a model: a hook around every report is felt in large suites.
    """
    if NEEDED not in config.stash:
        config.stash[NEEDED] = True
        config.pluginmanager.register(_Watch(), "ollama_warmup_watch")
        if wants_report(config):
            from pytest_ollama_warmup.session.note_times import note_times

            note_times(config)


def set_up(item: pytest.Item, *, passed: bool = False) -> None:
    """Skip or fail *item* whose model is not ready, or no longer.

    Where a fixture is expected to skip it, this waits until *passed* says that it has not.
    """
    # Not there for the second attempt of a test: what reruns tests does it within the protocol.
    state = state_of(item)
    if (gate := state.gate) is not None:
        if gate.fixture and not passed:
            return
        # Once one of them runs, the others of the same reason are no longer expected to skip.
        state.gate = None
        gates_of(item.config).opened.add(gate.reason)
    if not state.is_checked:
        want, state.verdict = _want(item)
        if want is not None:
            state.verdict = _look(item, want)
    state.is_checked = False
    if state.unseen and _WARNED_UNSEEN not in item.config.stash:
        item.config.stash[_WARNED_UNSEEN] = True
        # Where warnings are errors: the test would run without us.
        with suppress(OllamaWarmupWarning):
            item.warn(OllamaWarmupWarning(state.unseen))
    if state.verdict is not None:
        state.enforced = state.verdict
        enforce(state.verdict, item.session)


def _want(item: pytest.Item) -> tuple[Want | None, Verdict | None]:
    """Return what *item* wants of the run's own server, or why that cannot be known."""
    try:
        want = want_of(item)
    # A worker that raises out of a hook is respawned for ever.
    except Exception as exc:
        from pytest_ollama_warmup.warmup.on_unavailable import Verdict

        LOG.debug("%s: what it needs cannot be read", item.nodeid, exc_info=True)
        return None, Verdict("fail", str(exc))
    # Where the suite gives it another server, a fixture of ours asks that one.
    return (None if want is None or want.elsewhere else want), None


def _look(item: pytest.Item, want: Want) -> Verdict | None:
    """Return why *item* cannot run, after making ready what it needs."""
    from pytest_ollama_warmup.warmup.on_unavailable import Verdict
    from pytest_ollama_warmup.warmup.still_loaded import CannotLook

    state = state_of(item)
    state.was_looked_at, state.has_models = True, False
    try:
        verdict = check_of(item.config).before(want, warmers_of(item.config).own)
        state.has_models = verdict is None
        return verdict
    except CannotLook as exc:
        state.unseen = str(exc)
    # A worker that raises out of a hook is respawned for ever.
    except BaseException as exc:
        if not is_for_us(exc):
            raise
        # The error of a stand-in for httpx needs a word of what it is.
        return Verdict("fail", str(as_error(exc, settings_of(item.config).host)))
    return None


def _slot(item: pytest.Item) -> AbstractContextManager[None]:
    if settings_of(item.config).max_parallel.value is None:
        return nullcontext()
    return warmers_of(item.config).own.slot()


def _inside(item: pytest.Item) -> AbstractContextManager[None]:
    # In a single process nobody looks while a test runs.
    return check_of(item.config).inside() if is_worker(item.config) else nullcontext()


class _Watch:
    _looks_at_fixtures = False
    _unmarked = False

    # First, a wrapper: outside of the test's own time, and of the timers of other plugins.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        state = state_of(item)
        want, state.verdict = _want(item)
        state.is_checked, self._unmarked = True, want is None
        if want is None:
            return (yield)
        with ExitStack() as held:
            # A worker that raises out of a hook is respawned for ever: where a disk is full, the
            # test runs without its turn, as it would without us.
            with suppress(OSError):
                held.enter_context(_slot(item))
            if (gate := gates_of(item.config).closed(item.nodeid)) is None:
                state.verdict = _look(item, want)
            else:
                self._stop_at(gate, item)
            # And where what the client needs is replaced.
            with suppressing():
                held.enter_context(_inside(item))
            result = yield
            # It has skipped: what later tests set up is no gate of this one.
            state.gate = None
            check_of(item.config).after(item.nodeid)
            return result

    def _stop_at(self, gate: Gate, item: pytest.Item) -> None:
        """Look at the models of *item* only when it has passed its gate."""
        state = state_of(item)
        state.is_checked, state.gate = False, gate
        state.was_looked_at, state.has_models = True, None
        item.config.stash[_AT_GATE] = item
        if gate.fixture and not self._looks_at_fixtures:
            self._looks_at_fixtures = True
            item.config.pluginmanager.register(_AtFixtures(), "ollama_warmup_fixtures")

    # After set-up: a fixture may have changed the address, and takes it back at its end.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if self._unmarked:
            check_of(item.config).pass_by(item.nodeid)
        if state_of(item).gate is not None:
            # The fixture was not asked for this time, or it was set up for an earlier test.
            set_up(item, passed=True)
        if ELSEWHERE_FIXTURE in getattr(item, "fixturenames", ()):
            return
        if _WARNED_ADDRESS not in item.config.stash and (text := address_differs(item.config)):
            with tolerating("to compare OLLAMA_HOST"):
                if want_of(item) is not None:
                    item.config.stash[_WARNED_ADDRESS] = True
                    item.warn(OllamaWarmupWarning(text))

    # Before that is read which the processes of the run have seen.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # Ctrl-C must not wait for a server that hangs.
        if exitstatus != pytest.ExitCode.INTERRUPTED:
            check_of(session.config).at_end()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "setup" and state_of(item).was_looked_at:
            with tolerating("to note how a set-up ended"):
                _note_set_up(report, item, call)
        _mend(report, item)
        return report


class _AtFixtures:
    # A fixture that skips by itself goes through here as an exception.
    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        result = yield
        item = request.config.stash[_AT_GATE]
        gate = state_of(item).gate
        if gate is not None and gate.fixture == fixturedef.argname:
            set_up(item, passed=True)
        return result


def _note_set_up(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Keep for the next run whether the suite itself has skipped *item*, and where."""
    from pytest_ollama_warmup.session.skipped_last_run import Gate, SetUp

    # By ollama_models[...] in a fixture, too: the next run may have the model.
    by_us = any(frame.f_code is enforce.__code__ for frame in _frames(call))
    if by_us or state_of(item).enforced is not None:
        return
    gate = None
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        gate = Gate(clean(reason), _fixture_of(call))
    gates_of(item.config).note_set_up(item.nodeid, SetUp(gate, state_of(item).has_models))


def _frames(call: pytest.CallInfo[None]) -> list[FrameType]:
    """Return where an exception was raised, the frame that raised it last."""
    return [frame for frame, _ in traceback.walk_tb(call.excinfo.tb if call.excinfo else None)]


def _fixture_of(call: pytest.CallInfo[None]) -> str:
    """Return the fixture in whose set-up an exception was raised; empty for none."""
    fixture = ""
    for frame in _frames(call):
        # Whoever implements this hook has an argument of this name.
        if frame.f_code.co_name == "pytest_fixture_setup":
            fixture = frame.f_locals["fixturedef"].argname
    return fixture


def _mend(report: pytest.TestReport, item: pytest.Item) -> None:
    """Report a test whose model is not ready where the test is, also when it is to fail."""
    verdict = state_of(item).enforced
    if report.failed and _SCOPE.search(str(report.longrepr)):
        report.sections.append(("ollama", _OF_ONE_TEST))
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
