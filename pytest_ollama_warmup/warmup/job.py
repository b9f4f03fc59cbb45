"""The work on one model: on what terms it is done, how far it is, and how it failed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.ollama.names import is_cloud
from pytest_ollama_warmup.warmup.outcome import Outcome, Step, StepKind

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.errors import WarmupError
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.responses import LocalModel, ModelInfo
    from pytest_ollama_warmup.warmup.locks import Heartbeat
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.room_in_memory import Room

Phase = Literal[
    "server",
    "dropped",
    "checking",
    "local",
    "queued",
    "waiting",
    "pulling",
    "resuming",
    "outdated",
    "present",
    "loading",
    "busy",
    "done",
]


class Event(NamedTuple):
    """A model enters *phase*, or has *completed* of *total* bytes; the end comes with its outcome.

    The phase ``server`` is none of the model: it is the server that is waited for. One that is
    ``dropped`` is no longer worked on, and has no outcome.

    *why* is what has to be said of the phase.
    """

    target: Target
    phase: Phase
    completed: int = 0
    total: int = 0
    why: str = ""
    outcome: Outcome | None = None
    only_pulled: bool = False
    """Whether the end is that of a model whose load has its turn later."""


Say = Callable[[Event], None]


class Work:
    """The work on one model: its steps so far, and who hears of progress.

    *room* is the server's memory, where it decides what is loaded; None where the load is needed
    now.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        terms: Terms,
        say: Say,
        heartbeat: Heartbeat,
        pulls: threading.Semaphore,
        room: Room | None = None,
    ) -> None:
        self.client, self.target, self.terms = client, target, terms
        self.say, self.heartbeat, self.pulls, self.room = say, heartbeat, pulls, room
        self.steps: list[Step] = []
        self.aside: list[Step] = []
        """Steps that no table shows."""
        self.notes: list[str] = []
        self.waited = False
        """Whether it had to wait for its turn to pull: another run may have pulled it meanwhile."""
        self.found_loaded = False
        """Whether the model was in memory before this work."""
        self.already_loaded = False
        """Whether it was in memory as it is needed, so that nothing was sent for it."""
        self.sets_keep_alive = False
        """Whether the keep-alive has to be asked for: with the load, if that is known before."""
        self.kept = ""
        """What a refresh found to be so already."""
        self.listed: list[LocalModel] = []
        """The models that are local, as the server listed them; empty once a pull changes that."""
        self.early: EarlyLoad | None = None
        """The load of the model that was asked for before this work, if any was."""

    @property
    def name(self) -> str:
        """The model."""
        return self.target.spec.name

    @property
    def refreshes(self) -> bool:
        """Whether the model is pulled although it is local."""
        return self.terms.pull == "always" and self.terms.may_pull(self.target.given_by)

    def enter(self, phase: Phase, **more: Any) -> None:
        """Begin a phase of the work, and say so."""
        self.waited = self.waited or phase == "waiting"
        LOG.debug("%s: %s %s", self.name, phase, more.get("why", ""))
        self.heartbeat()
        self.say(Event(self.target, phase, **more))

    def add_step(
        self, kind: StepKind, start: float, begin: float, size: int = 0, end: float | None = None
    ) -> None:
        """Note a step that began at *start*, by the monotonic clock at *begin*, and is over.

        *end* is when it was over by that clock, None for now.
        """
        took = (clock.monotonic() if end is None else end) - begin
        self.steps.append(Step(kind=kind, start=start, seconds=took, size=size))

    def add_failed(self, kind: StepKind, begin: float) -> None:
        """Note a step that began at *begin* by the monotonic clock, and has failed."""
        took_s = clock.monotonic() - begin
        self.aside.append(Step(kind, clock.time() - took_s, took_s))

    @contextmanager
    def noting(self, kind: StepKind, *, least_s: float = 0.0) -> Iterator[None]:
        """Note a step that no table shows, unless it takes less than *least_s* seconds."""
        start, begin = clock.time(), clock.monotonic()
        try:
            yield
        finally:
            if (took_s := clock.monotonic() - begin) >= least_s:
                self.aside.append(Step(kind, start, took_s))

    def in_cloud(self, info: ModelInfo) -> bool:
        """Whether the model runs in Ollama's cloud."""
        return is_cloud(self.name) or bool(info.remote_host)


def failed(target: Target, exc: WarmupError, by: str, steps: tuple[Step, ...] = ()) -> Outcome:
    """Return the outcome of a model that cannot be made ready because of *exc*."""
    outcome = Outcome(
        key=target.key,
        model=target.spec.name,
        status="failed",
        by=by,
        steps=steps,
        options=target.spec.options,
        pin=target.spec.digest,
        origin=target.origin,
    )
    return outcome.failing(exc)
