"""Models that only tests need which skipped at set-up in the last run: they are left to those.

A suite may skip its tests in a hook or a fixture of its own, its *gate*, which nobody can see
before. What one run sees of it, the next one goes by.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.text import clean, count
from pytest_ollama_warmup.warmup.locks import write_whole
from pytest_ollama_warmup.warmup.plan import SERVER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from pytest_ollama_warmup.warmup.plan import Plan

# A file that holds the gates of the tests whose models are left.
_FILE = "gates.json"
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
        keys = [one for one in plan.targets if one not in plan.needs] if key == SERVER else [key]
        left.targets.update({*keys} & plan.targets.keys() - {*always})
    return left


def lines(plan: Plan, left: Left) -> list[str]:
    """Say which models are left, why, and until when."""
    by_reason: dict[str, list[str]] = {}
    for key in left.names:
        by_reason.setdefault(left.gates[plan.needs[key][0].test].reason, []).append(key)
    found = []
    for reason, keys in by_reason.items():
        tests = {need.test for key in keys for need in plan.needs[key]}
        one = len(tests) == 1
        which = "the test that needs" if one else f"all {count(len(tests), 'test')} that need"
        be, them = ("is", "it") if len(keys) == 1 else ("are", "them")
        found.append(
            f"{' and '.join(left.names[key] for key in keys)} {be} not prepared: {which} {them} "
            f"skipped at set-up in the last run ({clean(reason, 100)}). If one runs this time, it "
            "waits for its model. --cache-clear forgets the last run."
        )
    return found


def write(root: Path, gates: Mapping[str, Gate]) -> None:
    """Tell all processes of the run which tests are to look for their models behind a gate."""
    if gates:
        write_whole(root / _FILE, gates)


def read(root: Path) -> dict[str, Gate]:
    """Return what ``write`` has written."""
    # A worker never raises out of a hook: what cannot be read is as if it had not been left.
    with suppress(OSError, ValueError):
        found = json.loads((root / _FILE).read_text(encoding="utf-8"))
        return {test: Gate(*gate) for test, gate in found.items()}
    return {}
