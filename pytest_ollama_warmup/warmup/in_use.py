"""The models that runs of one user use side by side, so that none unloads another's.

Each run holds a lock for each of its models, which the kernel frees when the run dies. A run that
would unload what another one uses leaves it a note: the last one unloads.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_ollama_warmup.warmup.locks import Users, file_name, held, sweep
from pytest_ollama_warmup.warmup.user_directory import one_url, user_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Runs end one after the other, which takes each as long as it takes to unload.
_LIMIT_S = 30.0
_SWEPT_AFTER_S = 7 * 24 * 3600.0


class InUse:
    """What this run uses, from ``add`` to ``leave``; for one thread."""

    def __init__(self) -> None:
        self._folder = user_folder()
        self._users = Users(self._folder, f"run{os.getpid()}", sweeps=True)
        self._held = ExitStack()
        self._keys: set[str] = set()

    def add(self, url: str, model_key: str) -> None:
        """Use a model on the server *url*; where no lock can be had, nobody hears of it."""
        key = _key(url, model_key)
        if key not in self._keys:
            self._keys.add(key)
            with suppress(OSError):
                self._held.enter_context(self._users.using([key]))

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """End the use of all models; two runs that end at once do so one after the other."""
        with held(self._folder / "leaving.lock", "the end of another run", _LIMIT_S):
            yield
            self._held.close()
            self._users.clear()
            self._keys.clear()
            sweep(self._folder, _SWEPT_AFTER_S)

    def others(self, url: str, model_key: str) -> bool:
        """Whether another run uses a model now."""
        return self._users.others(_key(url, model_key))

    def ask_to_unload(self, url: str, model_key: str) -> None:
        """Leave it to the last run that uses a model to unload it."""
        self._note(url, model_key).touch()

    def was_asked(self, url: str, model_key: str) -> bool:
        """Whether a run that is over has left that to us; asked once."""
        note = self._note(url, model_key)
        asked = note.exists()
        note.unlink(missing_ok=True)
        return asked

    def _note(self, url: str, model_key: str) -> Path:
        return self._folder / f"unload-{file_name(_key(url, model_key))}"


def _key(url: str, model_key: str) -> str:
    return f"{one_url(url)} {model_key}"
