"""What each process of a run saw in the server's memory, written down as it happens.

Every look is one line in the process's own file, so that a worker that is killed loses nothing.
Read together they are the history of the server's memory during the run.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.ollama import clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ollama_warmup.ollama.responses import LoadedModel
    from pytest_ollama_warmup.warmup.run_directory import HostDirectory

When = Literal["before", "after", "between", "own"]


class Seen(NamedTuple):
    """A model in memory: *expires* as the server wrote it, *ends* by this machine's clock.

    *ends* is in seconds of the monotonic clock, None where the server does not say.
    """

    digest: str
    context: int
    expires: str
    ends: float | None


class Look(NamedTuple):
    """One look: between *sent* and *got* the server had *loaded* in memory, by name.

    Times are in seconds of the monotonic clock, which all processes of a machine share. *loaded* is
    None where the server could not be asked; *lost* is whether it did not answer at all. *tests*
    are the test before or after which it was taken, or two at most of those since the last look.
    *keys* are the models that they need. A look of the plugin's *own* is no look, but the time of a
    request of its own for the model *keys* name.
    """

    by: str
    sent: float
    got: float
    when: When
    tests: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    loaded: dict[str, Seen] | None = None
    lost: bool = False


class LookLog:
    """The file of one process; where it cannot be written, the run goes on without."""

    def __init__(self, directory: HostDirectory, by: str) -> None:
        self._path, self._by = directory.looks(by), by

    def write(
        self,
        when: When,
        sent: float,
        *,
        tests: Iterable[str] = (),
        keys: Iterable[str] = (),
        loaded: Iterable[LoadedModel] | None = None,
        lost: bool = False,
    ) -> None:
        """Write down a look that is over now."""
        got = clock.monotonic()
        look = {
            "by": self._by,
            "sent": sent,
            "got": got,
            "when": when,
            "tests": [*tests],
            "keys": [*keys],
            "loaded": None
            if loaded is None
            else {model.name: _seen(model, got) for model in loaded},
            "lost": lost,
        }
        with suppress(OSError):
            # One write, so that a process that is killed leaves no half of a line but the last.
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, (json.dumps(look) + "\n").encode())
            finally:
                os.close(file)


def read_looks(directory: HostDirectory) -> list[Look]:
    """Return the looks of all processes at one server, those that were over first in front."""
    looks = []
    for path in directory.all_looks():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                looks.append(_look(json.loads(line)))
    return sorted(looks, key=lambda look: look.got)


def _seen(model: LoadedModel, now: float) -> Seen:
    ends = None if model.keep_alive_s is None else now + model.keep_alive_s
    return Seen(model.digest, model.context_length, model.expires, ends)


def _look(data: dict[str, Any]) -> Look:
    loaded = data["loaded"]
    return Look(
        **{
            **data,
            "tests": tuple(data["tests"]),
            "keys": tuple(data["keys"]),
            "loaded": None
            if loaded is None
            else {key: Seen(*fields) for key, fields in loaded.items()},
        }
    )
