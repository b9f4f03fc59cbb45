"""All models of a run side by side."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.errors import LoadFailed, WarmupError
from pytest_ollama_warmup.ollama.replaced import replaced
from pytest_ollama_warmup.text import clean
from pytest_ollama_warmup.warmup.job import Event, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ollama_warmup.warmup.job import Say
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome

PULLS_SIDE_BY_SIDE = 4


class Preparation(ABC):
    """Others work, in processes or threads; whoever asks for the events hears and draws."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._absent: set[str] = set()
        self._open: dict[str, Target] = {}
        self._loads: dict[str, bool] = {}
        self.outcomes: dict[str, Outcome] = {}

    def start(self, targets: Iterable[Target]) -> None:
        """Begin with those of *targets* that are neither under way nor over."""
        new = [one for one in targets if one.id not in self._open and not self._is_over(one)]
        for target in new:
            self._open[target.id] = target
            self._loads[target.id] = target.loads
            self._absent.add(target.id)
        if new:
            self._begin(new)

    def is_open(self, key: str) -> bool:
        """Whether the end of a model's preparation has not been heard of yet."""
        return key in self._open

    @property
    def is_busy(self) -> bool:
        """Whether that is so of any model."""
        return bool(self._open)

    @abstractmethod
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
            if event.phase in ("present", "loading", "busy", "done", "dropped"):
                self._absent.discard(event.target.id)
            if event.outcome is not None:
                self.outcomes[event.target.id] = event.outcome
            if event.outcome is not None or event.phase == "dropped":
                self._open.pop(event.target.id, None)
            yield event

    @abstractmethod
    def _begin(self, targets: list[Target]) -> None:
        """Have *targets* brought, and put what happens into the queue of events."""

    def _is_over(self, target: Target) -> bool:
        outcome = self.outcomes.get(target.id)
        # What was only pulled may be loaded now.
        if outcome is None or not outcome.ready:
            return outcome is not None
        return self._loads[target.id] or not target.loads


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
                lambda: not self._loads and all(rank <= self._ranks[one] for one in self._near)
            )
            self._near.discard(key)
            self._loads = True
        try:
            yield
        finally:
            with self._changed:
                self._loads = False
                self._changed.notify_all()


class InThreads(Preparation):
    """Daemon threads do the work: Ctrl-C must not wait for a load.

    *turns* returns those that a model takes, which are those of its server.
    """

    def __init__(
        self, work: Callable[[Target, Say], Outcome], turns: Callable[[Target], Turns]
    ) -> None:
        super().__init__()
        self._work, self._turns = work, turns

    def close(self) -> None:
        """Leave it to whoever closes the client: that cuts what the threads do."""

    def _begin(self, targets: list[Target]) -> None:
        for target in targets:
            self._turns(target).announce([target.key])
        for target in targets:
            threading.Thread(
                target=self._run, args=(target,), daemon=True, name=f"ollama {target.id}"
            ).start()

    def _run(self, target: Target) -> None:
        try:
            outcome = self._work(target, self._events.put)
        except WarmupError as exc:
            outcome = failed(target, exc, "this run")
        except BaseException as exc:  # pytest reports what a thread does not catch
            words, advice = f"{type(exc).__name__}: {clean(exc)}", _REPORT
            if part := replaced():
                advice = f"The suite, or a plugin, has replaced {part}."
            outcome = failed(target, LoadFailed(target.spec.name, "", words, advice), "this run")
        self._events.put(Event(target, "done", outcome=outcome))


_REPORT = "This is an error in pytest-ollama-warmup; please report it."
