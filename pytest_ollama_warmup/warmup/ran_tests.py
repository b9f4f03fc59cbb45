"""The tests of a run that use models: when each ran, and for how long it waited.

Each process writes its own file as it goes, so that a worker that is killed loses nothing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class RanTest(NamedTuple):
    """A test that needs models, *keys*: when it ran, how long it waited before, how it ended.

    *start* is in seconds since the epoch, when it stopped waiting; *seconds* is None, and *outcome*
    empty, where its process ended in it. *cold* are the models that were not loaded when it was
    about to begin.
    """

    test: str
    by: str
    host: str
    keys: tuple[str, ...]
    waited_s: float
    start: float
    seconds: float | None = None
    outcome: str = ""
    cold: tuple[str, ...] = ()


class OtherTests(NamedTuple):
    """A *number* of tests that name no model, run one after the other by one process."""

    by: str
    host: str
    start: float
    seconds: float
    number: int


class RanLog:
    """The file of one process; where it cannot be written, the run goes on without."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, test: RanTest) -> None:
        """Write down that a test begins."""
        self._write({"begin": test._asdict()})

    def end(self, test: str, seconds: float, outcome: str) -> None:
        """Write down that the test that began last is over."""
        self._write({"end": {"test": test, "seconds": seconds, "outcome": outcome}})

    def others(self, tests: OtherTests) -> None:
        """Write down tests that name no model."""
        self._write({"others": tests._asdict()})

    def _write(self, data: dict[str, Any]) -> None:
        with suppress(OSError):
            # One write, so that a process that is killed leaves no half of a line but the last.
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, (json.dumps(data) + "\n").encode())
            finally:
                os.close(file)


def read_tests(paths: Iterable[Path]) -> tuple[list[RanTest], list[OtherTests]]:
    """Return the tests that the processes of a run have written to *paths*, in order of time."""
    tests: list[RanTest] = []
    others: list[OtherTests] = []
    for path in paths:
        current: RanTest | None = None
        for kind, data in _lines(path):
            if kind == "others":
                others.append(OtherTests(**data))
                continue
            if kind == "end" and current is not None and current.test == data["test"]:
                tests.append(current._replace(seconds=data["seconds"], outcome=data["outcome"]))
                current = None
                continue
            # The one before has no end: its process, or a plugin, has ended it.
            tests += [current] if current is not None else []
            current = None
            if kind == "begin":
                keys, cold = tuple(data["keys"]), tuple(data["cold"])
                current = RanTest(**{**data, "keys": keys, "cold": cold})
        tests += [current] if current is not None else []
    return sorted(tests, key=lambda test: test.start), sorted(others, key=lambda other: other.start)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        # The last one of a process that was killed may be half a line.
        with suppress(ValueError):
            ((kind, data),) = json.loads(line).items()
            yield kind, data
