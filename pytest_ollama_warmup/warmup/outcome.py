"""What happened to each model, as JSON; the one thing that crosses process borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.errors import LacksCapability

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ollama_warmup.errors import Cause, FailedBy, WarmupError

# What is shorter is no wait that anybody felt, in seconds.
NOTICEABLE_S = 0.05
StepKind = Literal["wait", "show", "pull", "verify", "load", "reload"]


class Step(NamedTuple):
    """One part of making a model ready: *start* in seconds since the epoch, *seconds* long.

    *size* is in bytes and counts what a pull has downloaded.
    """

    kind: StepKind
    start: float
    seconds: float
    size: int = 0


class Outcome(NamedTuple):
    """What happened to one model, or (with an empty *model*) to the server.

    *error* is the whole message, *brief* its few words for a table, *anchor* its section of
    docs/fix.md, *cause* and *failed_by* say the same as values; *by* is the process; *host* the
    server's URL.
    """

    key: str
    model: str
    status: Literal["ready", "failed"]
    by: str = ""
    error: str = ""
    brief: str = ""
    anchor: str = ""
    cause: Cause | Literal[""] = ""
    failed_by: FailedBy | Literal[""] = ""
    names_host: bool = False
    """Whether *error* says which server it is about."""
    notes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    digest: str = ""
    size: int = 0
    capabilities: tuple[str, ...] | None = None
    context_length: int = 0
    options: tuple[tuple[str, int | bool], ...] = ()
    host: str = ""
    found_loaded: bool = False
    learned: int = 0
    pin: str = ""
    weights: str = ""
    parameters: str = ""
    remote_host: str = ""
    """The host in Ollama's cloud that runs it."""
    left_out: str = ""
    """Why it was not loaded, although it could be: there is no room, or no need."""
    listed: bool = False
    """Whether the server lists it as loaded; one that shares the runner of another is not."""
    already_loaded: bool = False
    """Whether it was in memory as it is needed, so that nothing was sent for it."""
    sets_keep_alive: bool = False
    """Whether the server's own keep-alive was shorter than that of the run, which was asked for."""
    memory: int = 0
    """Bytes that it takes when it is loaded, of which *vram* are on a GPU."""
    vram: int = 0
    origin: str = ""
    """Who lists or needs it, as messages show it."""
    aside: tuple[Step, ...] = ()
    """Steps that no table shows: wait, show, verify, and a pull or load that failed."""

    @property
    def ready(self) -> bool:
        """Whether tests can use the model."""
        return self.status == "ready"

    @property
    def title(self) -> str:
        """The model with its options, as tables show it."""
        pin = f"@sha256:{self.pin}" if self.pin else ""
        options = "".join(f",{key}={str(value).lower()}" for key, value in self.options)
        return f"{self.model}{pin}{options}" if self.model else "the server"

    @property
    def is_watched(self) -> bool:
        """Whether the model is loaded by the server that is asked, now or when a test needs it."""
        return bool(self.step("load") or self.left_out)

    def step(self, kind: StepKind) -> Step | None:
        """Return the step of *kind*, if it took place."""
        return next((step for step in self.steps if step.kind == kind), None)

    def for_tests_that_need(self, capabilities: Iterable[str], origin: str) -> Outcome:
        """Return this outcome, as a failure where the model cannot do one of *capabilities*.

        A server before v0.6.4 does not say what its models can do: nothing is refused then.
        """
        if not self.ready or self.capabilities is None:
            return self
        missing = tuple(
            capability for capability in capabilities if capability not in self.capabilities
        )
        if not missing:
            return self
        return self.failing(LacksCapability(self.model, origin, missing, self.capabilities))

    def failing(self, exc: WarmupError) -> Outcome:
        """Return this outcome as the failure *exc*."""
        return self._replace(
            status="failed",
            error=str(exc),
            brief=exc.brief,
            anchor=exc.anchor,
            cause=exc.cause,
            failed_by=exc.failed_by,
            names_host=exc.names_host,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only; ``from_dict`` is its inverse."""
        return {
            **self._asdict(),
            "steps": [step._asdict() for step in self.steps],
            "aside": [step._asdict() for step in self.aside],
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        """Read what ``to_dict`` wrote, also after a trip through JSON."""
        capabilities = data["capabilities"]
        return cls(
            **{
                **data,
                "notes": tuple(data["notes"]),
                "steps": tuple(Step(**step) for step in data["steps"]),
                "aside": tuple(Step(**step) for step in data["aside"]),
                "capabilities": None if capabilities is None else tuple(capabilities),
                "options": tuple(sorted(data["options"].items())),
            }
        )


class Reload(NamedTuple):
    """A load of a model that was gone before *test*, made outside of the test's own time.

    *start* is in seconds since the epoch, *at* the same by the monotonic clock, *seconds* how long
    it took.
    """

    test: str
    by: str
    start: float
    at: float
    seconds: float


class Known(NamedTuple):
    """What a run knows of one model since it was warmed; all its processes share it.

    *context* is the one that it was last seen with (0 where unknown), at first that of its load,
    *switches* how often that changed. *beside* are the models that are
    listed in its place: they share its runner. *unproven* is ``expires_at`` after it was loaded
    again, until a test has used it since. *waits* counts the waits for another test that gave
    nothing. *rests* says why it is no longer loaded again: it was gone too *often*, a load was
    *unused*, other tests keep it *busy*, or it is *unseen* although it is loaded. *host* is the URL
    of its server.
    """

    key: str
    model: str
    context: int = 0
    switches: int = 0
    beside: tuple[str, ...] = ()
    reloads: tuple[Reload, ...] = ()
    unproven: str = ""
    waits: int = 0
    rests: Literal["", "often", "unused", "busy", "unseen"] = ""
    host: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only; ``from_dict`` is its inverse."""
        return {**self._asdict(), "reloads": [reload._asdict() for reload in self.reloads]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Known:
        """Read what ``to_dict`` wrote, after a trip through JSON."""
        reloads = tuple(Reload(**reload) for reload in data["reloads"])
        return cls(**{**data, "beside": tuple(data["beside"]), "reloads": reloads})

    def reloads_since(self, at: float) -> int:
        """Return how many loads were made since *at*, a time of the monotonic clock."""
        return sum(reload.at >= at for reload in self.reloads)
