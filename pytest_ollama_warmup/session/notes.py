"""What the processes of a run leave for the one that writes the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.session.state import CHECK, GATES

if TYPE_CHECKING:
    import pytest

    from pytest_ollama_warmup.warmup.run_directory import RunDirectory


def write_notes(config: pytest.Config) -> None:
    """Leave to the controller what this process has met, if it has looked at any test."""
    if CHECK in config.stash:
        config.stash[CHECK].write_notes()
    if GATES in config.stash:
        config.stash[GATES].write_notes()


def lost(directory: RunDirectory) -> dict[str, list[str]]:
    """Return, by what was wrong, the tests of any process whose models got lost in the run.

    What several tests met of one server is one event, in the words of the first of them.
    """
    events: dict[str, tuple[str, list[str]]] = {}
    for notes in directory.left("lost"):
        for what, (error, tests) in notes.items():
            events.setdefault(what, (error, []))[1].extend(tests)
    return dict(events.values())


def waits(directory: RunDirectory) -> dict[str, float]:
    """Return how many seconds each test of any process has waited for its models."""
    return {test: waited_s for notes in directory.left("waits") for test, waited_s in notes.items()}


def reordered(directory: RunDirectory) -> list[str]:
    """Return a line for each test of any process that was skipped because of a changed order."""
    return [line for notes in directory.left("reordered") for line in notes.values()]
