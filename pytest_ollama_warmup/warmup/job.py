"""The work on one model: on what terms it is done, how far it is, and how it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.ollama.names import is_cloud
from pytest_ollama_warmup.warmup.record import Outcome, Step, StepKind

if TYPE_CHECKING:
    import threading

    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.errors import WarmupError
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.responses import ModelInfo
    from pytest_ollama_warmup.warmup.locks import Beat
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.room import Room

Phase = Literal[
    "server",
    "dropped",
    "checking",
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
    """A model enters *phase*, or has *completed* of *total* bytes; the end brings its outcome.

    The phase ``server`` is none of the model: it is the server that is waited for. One that is
    ``dropped`` is no longer worked on, and has no outcome.

    *free* is the number of bytes on the disk that it comes to, where that is known; *why* is what
    has to be said of the phase.
    """

    target: Target
    phase: Phase
    completed: int = 0
    total: int = 0
    free: int | None = None
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
        beat: Beat,
        pulls: threading.Semaphore,
        room: Room | None = None,
    ) -> None:
        self.client, self.target, self.terms = client, target, terms
        self.say, self.beat, self.pulls, self.room = say, beat, pulls, room
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.waited = False
        """Whether it had to wait for its turn to pull: another run may have pulled it meanwhile."""
        self.found_loaded = False
        """Whether the model was in memory before this work."""
        self.already_loaded = False
        """Whether it was in memory as it is needed, so that nothing was sent for it."""
        self.leased = False
        """Whether the keep-alive has to be asked for: with the load, if that is known before."""
        self.kept = ""
        """What a refresh found to be so already."""
        self.early: EarlyLoad | None = None
        """The load of the model that was asked for before this work, if any was."""

    @property
    def name(self) -> str:
        """The model."""
        return self.target.spec.name

    def enter(self, phase: Phase, **more: Any) -> None:
        """Begin a phase of the work, and tell."""
        self.waited = self.waited or phase == "waiting"
        LOG.debug("%s: %s %s", self.name, phase, more.get("why", ""))
        self.beat()
        self.say(Event(self.target, phase, **more))

    def add_step(
        self, kind: StepKind, start: float, begin: float, size: int = 0, end: float | None = None
    ) -> None:
        """Note a step that began at *start*, by the monotonic clock at *begin*, and is over.

        *end* is when it was over by that clock, None for now.
        """
        took = (clock.monotonic() if end is None else end) - begin
        self.steps.append(Step(kind=kind, start=start, seconds=took, size=size))

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
    )
    return outcome.failing(exc)
