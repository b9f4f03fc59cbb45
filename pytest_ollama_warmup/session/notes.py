"""What the processes of a run leave in its directory for the one that writes the summary."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.warmup.locks import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pytest_ollama_warmup.session.gates import SetUp

Kind = Literal["waits", "lost", "moved", "set-ups"]


def write(folder: Path, by: str, kind: Kind, notes: object) -> None:
    """Leave *notes* of the process *by*, if there are any.

    Where that cannot be written, the run goes on without.
    """
    if notes:
        with suppress(OSError):
            write_whole(folder / f"{kind}-{by}.json", notes)


def lost(root: Path) -> dict[str, list[str]]:
    """Return, by what was wrong, the tests of any process whose models got lost in the run.

    What several tests met of one server is one event, in the words of the first of them.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for notes in _read(root.rglob("lost-*.json")):
        for what, (error, tests) in notes.items():
            found.setdefault(what, (error, []))[1].extend(tests)
    return dict(found.values())


def waits(root: Path) -> dict[str, float]:
    """Return how many seconds each test of any process has waited for its models."""
    found: dict[str, float] = {}
    for notes in _read(root.rglob("waits-*.json")):
        found |= notes
    return found


def moved(root: Path) -> list[str]:
    """Return a line for each test of any process that was skipped because of a changed order."""
    return [line for notes in _read(root.rglob("moved-*.json")) for line in notes.values()]


def set_ups(root: Path) -> dict[str, SetUp]:
    """Return how the set-up of each test of any process ended whose models nobody was short of."""
    from pytest_ollama_warmup.session.gates import Gate, SetUp

    return {
        test: SetUp(Gate(*gate) if gate else None, ready)
        for notes in _read(root.rglob("set-ups-*.json"))
        for test, (gate, ready) in notes.items()
    }


def _read(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in sorted(paths):
        yield json.loads(path.read_text(encoding="utf-8"))
