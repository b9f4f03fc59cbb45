"""The order in which the models of one host are loaded."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Turns:
    """One load at a time, as the server does it, in the order in which models were announced.

    So the one that is needed first comes first. One that has to be pulled holds up nobody.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ranks: dict[str, int] = {}
        self._near: set[str] = set()
        self._loads = False

    def announce(self, keys: Iterable[str]) -> None:
        """Give *keys* their turns, behind those of earlier ones."""
        with self._changed:
            for key in keys:
                self._ranks.setdefault(key, len(self._ranks))
                self._near.add(key)

    def step_aside(self, key: str) -> None:
        """Hold up nobody any more: it is pulled, or will not be loaded."""
        with self._changed:
            self._near.discard(key)
            self._changed.notify_all()

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Hold the turn of *key*."""
        with self._changed:
            self._near.add(key)
            rank = self._ranks.setdefault(key, len(self._ranks))
            self._changed.wait_for(
                lambda: (
                    not self._loads
                    and all(rank <= self._ranks[near_key] for near_key in self._near)
                )
            )
            self._near.discard(key)
            self._loads = True
        try:
            yield
        finally:
            with self._changed:
                self._loads = False
                self._changed.notify_all()
