"""What happened, as JSON; the one thing that crosses process borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.errors import LacksCapability

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ollama_warmup.errors import Cause, FailedBy, WarmupError

SCHEMA = 1
# What is shorter is no wait that anybody felt, in seconds.
NOTICEABLE_S = 0.05
StepKind = Literal["wait", "pull", "load"]


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

    *error* is the whole message, *brief* its few words for a table, *cause* and *failed_by* say the
    same as values; *by* is the process; *host* the server's URL.
    """

    key: str
    model: str
    status: Literal["ready", "failed"]
    by: str = ""
    error: str = ""
    brief: str = ""
    cause: Cause | Literal[""] = ""
    failed_by: FailedBy | Literal[""] = ""
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
    leased: bool = False
    """Whether the server's own lease was shorter than that of the run, which was asked for."""

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

        A server before v0.6.4 does not tell what its models can do: nothing is refused then.
        """
        if not self.ready or self.capabilities is None:
            return self
        lacking = tuple(one for one in capabilities if one not in self.capabilities)
        if not lacking:
            return self
        return self.failing(LacksCapability(self.model, origin, lacking, self.capabilities))

    def failing(self, exc: WarmupError) -> Outcome:
        """Return this outcome as the failure *exc*."""
        return self._replace(
            status="failed",
            error=str(exc),
            brief=exc.brief,
            cause=exc.cause,
            failed_by=exc.failed_by,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only; ``from_dict`` is its inverse."""
        return {
            **self._asdict(),
            "steps": [one._asdict() for one in self.steps],
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

    *context* is the one that it was last seen with (0 where nobody tells), at first that of its
    load, *switches* how often that changed. *beside* are the models that are
    listed in its place: they share its runner. *unproven* is ``expires_at`` after it was loaded
    again, until a test has used it since. *waits* counts the waits for another test that brought
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
        return {**self._asdict(), "reloads": [one._asdict() for one in self.reloads]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Known:
        """Read what ``to_dict`` wrote, after a trip through JSON."""
        reloads = tuple(Reload(**one) for one in data["reloads"])
        return cls(**{**data, "beside": tuple(data["beside"]), "reloads": reloads})

    def reloads_since(self, at: float) -> int:
        """Return how many loads were made since *at*, a time of the monotonic clock."""
        return sum(one.at >= at for one in self.reloads)


class Record:
    """One run: each model's outcome, and the tests that need it, by key.

    *server* is the outcome of asking the server; *waited_s* counts seconds before the first test.
    *busy* are the times of that waiting, *clock_started* is when pytest began to count its own
    time, and *prepared* when the first test could begin (0 where that was not, or where tests ran
    meanwhile), all in seconds since the epoch;
    *waits* those before the tests that waited for their own models. *lost* are, by what was wrong,
    the tests whose models were ready, and could not be had any more.
    """

    def __init__(self) -> None:
        self.models: dict[str, Outcome] = {}
        self.tests: dict[str, list[str]] = {}
        self.waited_s = self.clock_started = self.prepared = 0.0
        self.busy: list[tuple[float, float]] = []
        self.waits: dict[str, float] = {}
        self.lost: dict[str, list[str]] = {}
        self.server: Outcome | None = None
        self.known: list[Known] = []

    @property
    def outcomes(self) -> list[Outcome]:
        """What happened to each model, in the order in which they are listed."""
        return list(self.models.values())

    @property
    def failed(self) -> list[Outcome]:
        """The models that are not ready."""
        return [outcome for outcome in self.models.values() if not outcome.ready]

    def to_dict(self) -> dict[str, Any]:
        """Return the run as one JSON document: builtins only, times in seconds, sizes in bytes."""
        server = self.server
        return {
            "schema": SCHEMA,
            "host": server.host if server else "",
            "version": server.notes[0] if server and server.ready else "",
            "waited_s": self.waited_s,
            "waits": self.waits,
            "lost": self.lost,
            "known": [one.to_dict() for one in self.known],
            "models": [
                {**outcome.to_dict(), "tests": self.tests.get(outcome.key, [])}
                for outcome in self.models.values()
            ],
        }

    def add(self, outcome: Outcome, key: str = "") -> None:
        """Keep *outcome*; a model may come twice: it is pulled, and later loaded.

        *key* tells it apart from those on other servers of the run.
        """
        self.models[key or outcome.key] = outcome
