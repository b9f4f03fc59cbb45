"""All models of a run side by side."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.errors import LoadFailed, WarmupError
from pytest_ollama_warmup.text import clean
from pytest_ollama_warmup.warmup.work import Event, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome
    from pytest_ollama_warmup.warmup.work import Say

PULLS_SIDE_BY_SIDE = 4


class Preparation:
    """Daemon threads work, another one hears and draws."""

    def __init__(self, work: Callable[[Target, Say], Outcome]) -> None:
        self._work = work
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._absent: set[str] = set()
        self._open: dict[str, Target] = {}
        self._loads: dict[str, bool] = {}
        self.outcomes: dict[str, Outcome] = {}

    def start(self, targets: Iterable[Target]) -> None:
        """Begin with those of *targets* that are neither under way nor over."""
        new = [one for one in targets if one.key not in self._open and not self._is_over(one)]
        for target in new:
            self._open[target.key] = target
            self._loads[target.key] = target.loads
            self._absent.add(target.key)
        if new:
            self._begin(new)

    def is_open(self, key: str) -> bool:
        """Whether the end of a model's preparation has not been heard of yet."""
        return key in self._open

    @property
    def is_busy(self) -> bool:
        """Whether that is so of any model."""
        return bool(self._open)

    def close(self) -> None:
        """End what is under way."""

    def events(self, until: Literal["present", "done"]) -> Iterator[Event | None]:
        """Yield what happens until no model is short of *until*; None at least ten times a second.

        Waiting is in slices, so that Ctrl-C is answered at once and a display can move.
        """
        while self._absent if until == "present" else self._open:
            try:
                event = self._events.get(timeout=0.1)
            except queue.Empty:
                yield None
                continue
            if event.phase in ("present", "loading", "busy", "done"):
                self._absent.discard(event.target.key)
            if event.outcome is not None:
                self.outcomes[event.target.key] = event.outcome
                self._open.pop(event.target.key, None)
            yield event

    def _begin(self, targets: list[Target]) -> None:
        for target in targets:
            # A daemon: Ctrl-C must not wait for a load.
            threading.Thread(
                target=self._run, args=(target,), daemon=True, name=f"ollama {target.key}"
            ).start()

    def _is_over(self, target: Target) -> bool:
        outcome = self.outcomes.get(target.key)
        # What was only pulled may be loaded now.
        if outcome is None or not outcome.ready:
            return outcome is not None
        return self._loads[target.key] or not target.loads

    def _run(self, target: Target) -> None:
        try:
            outcome = self._work(target, self._events.put)
        except WarmupError as exc:
            outcome = failed(target, exc, "this run")
        except BaseException as exc:  # pytest reports what a thread does not catch
            words = f"{type(exc).__name__}: {clean(exc)}"
            outcome = failed(target, LoadFailed(target.spec.name, "", words, _REPORT), "this run")
        self._events.put(Event(target, "done", outcome=outcome))


_REPORT = "This is an error in pytest-ollama-warmup; please report it."
