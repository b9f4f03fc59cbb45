"""Models that only tests need which skipped at set-up in the last run: they are left to those.

A suite may skip its tests in a hook or a fixture of its own, its *gate*, which nobody can see
before. What one run sees of it, the next one goes by.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.text import clean, count, explained
from pytest_ollama_warmup.warmup.plan import SERVER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_ollama_warmup.warmup.plan import Plan
    from pytest_ollama_warmup.warmup.run_directory import RunDirectory

# A reason that speaks of what the plugin prepares may be gone once that is ready.
_OF_MODELS = re.compile(
    r"ollama|model|server|pull|download|connect|reach|running|available|found|missing|install"
)


class Gate(NamedTuple):
    """Why a test skipped at set-up, and the *fixture* that did it; empty for a hook."""

    reason: str
    fixture: str = ""


class SetUp(NamedTuple):
    """How a test's set-up ended: at a *gate*, or without.

    *ready* is whether its models were ready; None where they were left.
    """

    gate: Gate | None
    ready: bool | None

    def confirms(self, before: Gate | None, names: Collection[str]) -> bool:
        """Whether the next run can go by this: the test would skip with its models ready, too.

        *names* are those of the run's models, in lower case.
        """
        if self.gate is None:
            return False
        if self.ready:
            return True
        if self.ready is None and before is not None and before.reason == self.gate.reason:
            return True
        reason = self.gate.reason.lower()
        return not (_OF_MODELS.search(reason) or any(name in reason for name in names))


class Left(NamedTuple):
    """What is left to tests: their *gates*, and the *targets* of the plan, by key.

    *names* is what a message calls that, by what it is needed under.
    """

    gates: dict[str, Gate]
    targets: set[str]
    names: dict[str, str]


def what_is_left(plan: Plan, skipped: Mapping[str, Gate], always: Collection[str]) -> Left:
    """Return what of *plan* only tests need that all *skipped* for one reason.

    Models whose keys are among *always* are none of it, whoever needs them.
    """
    left = Left({}, set(), {})
    for key, needs in plan.needs.items():
        closed = {need.test: skipped[need.test] for need in needs if need.test in skipped}
        one_reason = len({gate.reason for gate in closed.values()}) == 1
        if key in always or not one_reason or any(need.test not in closed for need in needs):
            continue
        left.gates.update(closed)
        left.names[key] = plan.targets[key].spec.title if key in plan.targets else "the server"
        # Tests that need the server only may look up any listed model.
        keys = (
            [target for target in plan.targets if target not in plan.needs]
            if key == SERVER
            else [key]
        )
        left.targets.update({*keys} & plan.targets.keys() - {*always})
    return left


def lines(plan: Plan, left: Left) -> list[str]:
    """Say which models are left, why, and until when."""
    by_reason: dict[str, list[str]] = {}
    for key in left.names:
        by_reason.setdefault(left.gates[plan.needs[key][0].test].reason, []).append(key)
    texts = []
    for reason, keys in by_reason.items():
        tests = {need.test for key in keys for need in plan.needs[key]}
        single = len(tests) == 1
        which = "the test that needs" if single else f"all {count(len(tests), 'test')} that need"
        be, them = ("is", "it") if len(keys) == 1 else ("are", "them")
        texts.append(
            explained(
                f"{' and '.join(left.names[key] for key in keys)} {be} not prepared: {which} "
                f"{them} skipped at set-up in the last run ({clean(reason, 100)}). If one runs "
                "this time, it waits for its model. --cache-clear forgets the last run.",
                "not-prepared",
            )
        )
    return texts


class Gates:
    """The gates of the run as one process sees them: those that are expected, and those it meets.

    *by* is the process.
    """

    def __init__(self, directory: RunDirectory, by: str) -> None:
        self._directory, self._by = directory, by
        self._expected: dict[str, Gate] | None = None
        self._set_ups: dict[str, SetUp] = {}
        self.opened: set[str] = set()
        """The reasons to skip that this process has seen to be none this time."""

    def expect(self, gates: Mapping[str, Gate]) -> None:
        """Let all processes of the run know which tests look for their models behind a gate."""
        if gates:
            self._directory.gates.write(gates)

    def closed(self, test: str) -> Gate | None:
        """Return why *test* is expected to skip before it needs the models that were left to it."""
        if self._expected is None:
            self._expected = {}
            # A worker never raises out of a hook: what cannot be read is as if it had not been
            # left.
            with suppress(OSError, ValueError, TypeError):
                gates = self._directory.gates.read({})
                self._expected = {test: Gate(*gate) for test, gate in gates.items()}
        gate = self._expected.get(test)
        return None if gate is None or gate.reason in self.opened else gate

    def note_set_up(self, test: str, set_up: SetUp) -> None:
        """Keep how the set-up of *test* ended, for the next run."""
        self._set_ups[test] = set_up

    def write_notes(self) -> None:
        """Leave to the controller how set-ups ended in this process."""
        self._directory.leave(self._by, "set-ups", self._set_ups)


def set_ups(directory: RunDirectory) -> dict[str, SetUp]:
    """Return how the set-up of each test of any process ended that had what it needs."""
    return {
        test: SetUp(Gate(*gate) if gate else None, ready)
        for notes in directory.left("set-ups")
        for test, (gate, ready) in notes.items()
    }
