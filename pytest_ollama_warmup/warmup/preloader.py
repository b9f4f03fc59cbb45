"""Many models on all hosts of a run, made ready side by side."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pytest_ollama_warmup.errors import LoadFailed, WarmupError
from pytest_ollama_warmup.ollama.replaced_httpx import replaced, suppressing
from pytest_ollama_warmup.text import clean
from pytest_ollama_warmup.warmup.job import Event, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ollama_warmup.warmup.job import Say
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Record
    from pytest_ollama_warmup.warmup.run_directory import Stage
    from pytest_ollama_warmup.warmup.warmer import Warmer

PULLS_SIDE_BY_SIDE = 4
_REPORT = "This is an error in pytest-ollama-warmup; please report it."


class Task(NamedTuple):
    """A model to pull, or to pull and load."""

    target: Target
    stage: Stage


class Executor(Protocol):
    """Who does the tasks, and says what happens."""

    def begin(self, tasks: list[Task], say: Say) -> None:
        """Begin with *tasks*, without waiting for them; the end of each is an event."""

    def close(self) -> None:
        """End what is under way."""


class Preloader:
    """An *executor* works; whoever asks for the events hears how that goes.

    Outcomes go into *record*. *asked* adds the suite's own request to a target.
    """

    def __init__(
        self,
        executor: Executor,
        record: Record,
        asked: Callable[[Target], Target] = lambda target: target,
    ) -> None:
        self._executor, self._record, self._asked = executor, record, asked
        self._events: deque[Event] = deque()
        # The one that is being shown: Ctrl-C in the midst of that must not lose what it ends.
        self._shown: Event | None = None
        self._arrived = threading.Event()
        self._absent: set[str] = set()
        self._open: set[str] = set()
        self._begun: dict[str, Stage] = {}

    def start(self, targets: Iterable[Target], stage: Stage = "load") -> list[Target]:
        """Begin to pull or load *targets*; return those with which that was new.

        Not with what is under way, or has come so far. What was only pulled may be loaded later.
        """
        tasks = []
        for target in targets:
            before = self._begun.get(target.id)
            outcome = self._record.models.get(target.id)
            gave_up = outcome is not None and not outcome.ready
            if target.id in self._open or gave_up or before in ("load", stage):
                continue
            self._begun[target.id] = stage
            self._open.add(target.id)
            self._absent.add(target.id)
            # What a suite's own hook does, it may expect to do in the main thread.
            tasks.append(Task(self._asked(target), stage))
        if tasks:
            self._executor.begin(tasks, self._hear)
        return [task.target for task in tasks]

    def is_open(self, target: Target) -> bool:
        """Whether the end of the work on a model has not been heard of yet."""
        return target.id in self._open

    @property
    def is_busy(self) -> bool:
        """Whether that is so of any model."""
        return bool(self._open)

    def close(self) -> None:
        """End what is under way."""
        self._executor.close()

    def events(self, until: Literal["present", "done"]) -> Iterator[Event | None]:
        """Yield what happens until no model is short of *until*; None at least ten times a second.

        Waiting is in slices, so that Ctrl-C is answered at once and a display can move.
        """
        while self._absent if until == "present" else self._open:
            if self._events:
                # Known here before it is taken away.
                self._shown = self._events[0]
                self._events.popleft()
                yield self._heard(self._shown)
                self._shown = None
            elif self._arrived.wait(0.1):
                self._arrived.clear()
            else:
                yield None

    def pending(self) -> Iterator[Event]:
        """Yield what has happened and was not shown yet, without waiting."""
        if self._shown is not None:
            yield self._heard(self._shown)
        while self._events:
            yield self._heard(self._events.popleft())

    def _hear(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    def _heard(self, event: Event) -> Event:
        key = event.target.id
        if event.phase in ("local", "present", "loading", "busy", "done", "dropped"):
            self._absent.discard(key)
        if event.outcome is not None:
            self._record.add(event.outcome, key)
        if event.outcome is not None or event.phase == "dropped":
            self._open.discard(key)
        if event.phase == "dropped":
            self._begun.pop(key, None)
        return event


class Threads:
    """Does tasks in daemon threads: Ctrl-C must not wait for a load.

    *warmer_of* returns who makes a model ready. With *in_turns* sets of models have the server's
    memory in turn, and each makes room for the next; without it a model is left out that does not
    fit.
    """

    def __init__(self, warmer_of: Callable[[Target], Warmer], *, in_turns: bool) -> None:
        self._warmer_of, self.in_turns = warmer_of, in_turns
        self._pulls: dict[str, threading.Semaphore] = {}
        self._begun: dict[str, threading.Event] = {}

    def begin(self, tasks: list[Task], say: Say) -> None:
        """Begin with *tasks* side by side."""
        for task in tasks:
            warmer = self._warmer_of(task.target)
            # Made before the threads begin, which would make one each. Why one cannot be made is
            # said where the server is asked.
            with suppressing():
                warmer.client()
            if task.stage == "load":
                warmer.turns.announce([task.target.key])
            self._pulls.setdefault(warmer.host.url, threading.Semaphore(PULLS_SIDE_BY_SIDE))
            self._begun.setdefault(task.target.id, threading.Event())
        for task in tasks:
            threading.Thread(
                target=self._run, args=(task, say), daemon=True, name=f"ollama {task.target.id}"
            ).start()

    def wait_until_begun(self, targets: Iterable[Target]) -> None:
        """Wait until no other process can begin with *targets*, which are being worked on here."""
        for target in targets:
            # In slices, so that Ctrl-C is answered at once.
            while not self._begun[target.id].wait(0.1):
                pass

    def close(self) -> None:
        """Leave it to whoever closes the warmers: that cuts what the threads do."""

    def _run(self, task: Task, say: Say) -> None:
        outcome = self._outcome(task, say)
        pulled = task.stage == "pull"
        say(Event(task.target, "done", outcome=outcome, only_pulled=pulled))

    def _outcome(self, task: Task, say: Say) -> Outcome:
        target, begun = task.target, self._begun[task.target.id]
        try:
            warmer = self._warmer_of(target)
            return warmer.ensure(
                target,
                task.stage,
                say,
                pulls=self._pulls[warmer.host.url],
                begun=begun.set,
                with_room=not self.in_turns,
            )
        except WarmupError as exc:
            return failed(target, exc, "this run")
        except BaseException as exc:  # pytest reports what a thread does not catch
            words, advice = f"{type(exc).__name__}: {clean(exc)}", _REPORT
            if part := replaced():
                advice = f"The suite, or a plugin, has replaced {part}."
            return failed(target, LoadFailed(target.spec.name, "", words, advice), "this run")
        finally:
            begun.set()
