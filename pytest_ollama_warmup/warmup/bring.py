"""Pull, check and load one model; all models side by side."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pytest_ollama_warmup.errors import (
    AccessDenied,
    ApiError,
    LoadFailed,
    NotPulled,
    OtherDigest,
    PullFailed,
    ServerError,
    ServerUnreachable,
    UnknownModel,
    WarmupError,
)
from pytest_ollama_warmup.ollama.names import ModelName, is_cloud
from pytest_ollama_warmup.ollama.storage import free_bytes
from pytest_ollama_warmup.text import clean, seconds
from pytest_ollama_warmup.warmup.gate import Beat, held, pull_lock_path
from pytest_ollama_warmup.warmup.pull import RUN_AGAIN, Progress, pull
from pytest_ollama_warmup.warmup.record import Outcome, Step, StepKind
from pytest_ollama_warmup.warmup.spec import FOREVER, RUNNER_KEYS

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.answers import ModelInfo, Resident, Stored
    from pytest_ollama_warmup.ollama.client import Client, LoadKind
    from pytest_ollama_warmup.warmup.plan import Target

T = TypeVar("T", "Resident", "Stored")
Phase = Literal[
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
PULLS_SIDE_BY_SIDE = 4
WARM_UP_PROMPT = "Hi"


@dataclass(frozen=True, slots=True)
class Event:
    """A model enters *phase*, or has *completed* of *total* bytes; the end brings its outcome.

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


Say = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms models are brought; durations in seconds, *keep_alive_s* -1 is for ever."""

    pull: str = "auto"
    warm: str = "prompt"
    keep_alive_s: float = 600.0
    comes_back_s: float = 10.0
    """How long a server that went away in a pull may take to come back."""
    stall_s: float = 25.0
    load_timeout_s: float = 900.0
    ci: bool = False

    def may_pull(self, target: Target) -> bool:
        """Whether the download of *target* is allowed: nothing is downloaded by surprise."""
        if self.pull == "auto":
            return self.ci or target.given_by in ("option", "environment")
        return self.pull in ("missing", "always")


@dataclass(slots=True)
class _Bringing:
    """The work on one model: its steps so far, and who hears of progress."""

    client: Client
    target: Target
    terms: Terms
    say: Say
    beat: Beat
    pulls: threading.Semaphore
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waited: bool = False
    """Whether it had to wait for its turn to pull: another run may have pulled it meanwhile."""
    kept: str = ""
    """What a refresh found to be so already."""

    @property
    def name(self) -> str:
        return self.target.spec.name

    def enter(self, phase: Phase, **more: Any) -> None:
        self.waited = self.waited or phase == "waiting"
        self.beat()
        self.say(Event(self.target, phase, **more))

    def add_step(self, kind: StepKind, start: float, begin: float, size: int = 0) -> None:
        took = time.monotonic() - begin
        self.steps.append(Step(kind=kind, start=start, seconds=took, size=size))


def bring(
    client: Client,
    target: Target,
    terms: Terms,
    *,
    by: str,
    say: Say = lambda event: None,
    beat: Beat = lambda: None,
    pulls: threading.Semaphore | None = None,
) -> Outcome:
    """Make one model ready, whatever that takes; a failure is an outcome, not an exception."""
    work = _Bringing(client, target, terms, say, beat, pulls or threading.Semaphore(1))
    try:
        info = _ensure_present(work)
        stored = _check_pin(work, info)
        if stored is not None:
            # A part that is there within 60 ms is not told in a pull, nor is its size.
            work.steps = [
                replace(one, size=stored.size) if one.kind == "pull" else one for one in work.steps
            ]
        work.enter("present", why=work.kept)
        resident = _ensure_loaded(work, info)
    except WarmupError as exc:
        return failed(target, exc, by, tuple(work.steps))
    return Outcome(
        key=target.key,
        model=work.name,
        status="ready",
        by=by,
        notes=tuple(work.notes),
        steps=tuple(work.steps),
        digest=stored.digest if stored else "",
        size=stored.size if stored else 0,
        context_length=resident.context_length if resident else 0,
        capabilities=info.capabilities,
        options=target.spec.options,
    )


def failed(target: Target, exc: Exception, by: str, steps: tuple[Step, ...] = ()) -> Outcome:
    """Return the outcome of a model that cannot be made ready because of *exc*."""
    return Outcome(
        key=target.key,
        model=target.spec.name,
        status="failed",
        by=by,
        error=str(exc),
        brief=exc.brief if isinstance(exc, WarmupError) else str(exc),
        steps=steps,
        options=target.spec.options,
    )


class Preparation:
    """All models of a run side by side: daemon threads work, the main thread hears and draws."""

    def __init__(self, work: Callable[[Target, Say], Outcome]) -> None:
        self._work = work
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._absent: set[str] = set()
        self._open: dict[str, Target] = {}
        self.outcomes: dict[str, Outcome] = {}

    def start(self, targets: Iterable[Target]) -> None:
        """Begin with those of *targets* that were not begun before."""
        for target in targets:
            if target.key not in self._open and target.key not in self.outcomes:
                self._open[target.key] = target
                self._absent.add(target.key)
                # A daemon: Ctrl-C must not wait for a load.
                threading.Thread(
                    target=self._run, args=(target,), daemon=True, name=f"ollama {target.key}"
                ).start()

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


def _ensure_present(work: _Bringing) -> ModelInfo:
    name, target = work.name, work.target
    work.enter("checking")
    info = _show(work)
    if is_cloud(name) and info is None:
        raise NotPulled(name, target.origin, True)
    if info is not None and _in_cloud(work, info):
        return info
    if info is not None and (work.terms.pull != "always" or not work.terms.may_pull(target)):
        return info
    if not work.terms.may_pull(target):
        raise NotPulled(name, target.origin)
    with _turn_to_pull(work) as beat:
        if work.waited and info is None and (pulled_by_another := _show(work)) is not None:
            return pulled_by_another
        work.enter("pulling")
        start, begin = time.time(), time.monotonic()
        free: dict[str, int | None] = {}

        def on_line(progress: Progress, digest: str, *, moved: bool) -> None:
            if moved:
                # For those who wait for this download, and for those who wait for this model.
                beat()
                work.beat()
            if digest and digest not in free:
                free[digest] = free_bytes(work.client.host, digest)
            completed, total = progress.completed, progress.total
            work.say(Event(target, "pulling", completed, total, free.get(digest)))

        def on_resume(why: str) -> None:
            work.enter("resuming", why=why)

        try:
            pulled = pull(work.client, target.spec, target.origin, work.terms, on_line, on_resume)
        except (UnknownModel, PullFailed) as exc:
            if info is None:
                raise
            # Refreshing was asked for, not a new model: an old one beats none.
            work.notes.append("not refreshed")
            work.enter("outdated", why=f"is not refreshed, what is there is used: {exc.words}")
            return info
    if info is not None and not pulled.fresh:
        work.notes.append("up to date")
        work.kept = "is up to date"
    else:
        work.add_step("pull", start, begin, pulled.size)
    if pulled.resumed:
        times = "once" if pulled.resumed == 1 else f"{pulled.resumed} times"
        work.notes.append(f"resumed {times}")
    # A stream can end with success for a manifest whose parts were cleared away meanwhile.
    info = _show(work)
    if info is None:
        raise PullFailed(name, target.origin, "pulled, but the server does not show it", RUN_AGAIN)
    return info


@contextmanager
def _turn_to_pull(work: _Bringing) -> Iterator[Beat]:
    """Wait until fewer than four pulls of this run are under way, and none of this model by others.

    Waiting is progress too: whoever waits for this model in turn must not give up.
    """
    work.enter("queued")
    while not work.pulls.acquire(timeout=1.0):
        work.waited = True
        work.beat()
    try:
        with held(
            pull_lock_path(work.client.host.url, work.target.spec.model_key),
            f"pull of {work.name}",
            work.terms.load_timeout_s,
            lambda: work.enter("waiting"),
        ) as beat:
            yield beat
    finally:
        work.pulls.release()


_CLOUD_ACCESS = "Sign the server in with 'ollama signin', without OLLAMA_NO_CLOUD."


def _check_pin(work: _Bringing, info: ModelInfo) -> Stored | None:
    """Return what the server says of the model on its disk; None where it does not."""
    spec = work.target.spec
    if _in_cloud(work, info):
        return None
    try:
        stored = _find(work.client.stored(), spec.model_key)
    except ApiError as exc:
        if not spec.digest:
            return None
        words, advice = exc.words, "Its digest is not known, and the pin cannot be checked."
        raise LoadFailed(work.name, work.target.origin, words, advice) from exc
    digest = stored.digest if stored else ""
    if not digest.startswith(spec.digest):
        raise OtherDigest(work.name, work.target.origin, spec.digest, digest)
    if spec.digest:
        work.notes.append("digest as pinned")
    return stored


def _in_cloud(work: _Bringing, info: ModelInfo) -> bool:
    return is_cloud(work.name) or bool(info.remote_host)


def _show(work: _Bringing) -> ModelInfo | None:
    limit_s, begin = min(60.0, work.terms.load_timeout_s), time.monotonic()
    try:
        return work.client.show(work.name, limit_s=limit_s)
    except ServerUnreachable as exc:
        host, cause = work.client.host, exc.cause
        if cause == "no answer":
            cause = "no answer to POST /api/show"
        raise ServerUnreachable(host.url, host.source, cause, time.monotonic() - begin) from exc
    except AccessDenied as exc:
        if not is_cloud(work.name):
            raise
        # Of ollama.com, passed on by the server: no key of ours would help.
        raise LoadFailed(work.name, work.target.origin, exc.words, _CLOUD_ACCESS) from exc
    except ApiError as exc:
        raise LoadFailed(
            work.name, work.target.origin, exc.words, _advice_on_load(work, exc)
        ) from exc


def _ensure_loaded(work: _Bringing, info: ModelInfo) -> Resident | None:
    spec, terms = work.target.spec, work.terms
    if _in_cloud(work, info):
        work.notes.append("runs in the cloud, not warmed")
        return None
    if terms.warm == "off":
        return None
    kind: LoadKind = "generate"
    if info.capabilities is not None and "completion" not in info.capabilities:
        kind = "embed"
    start, begin = time.time(), time.monotonic()
    work.enter("loading")
    try:
        kind = _load(work, kind, info)
        work.add_step("load", start, begin)
        return _ensure_lease(work, kind)
    except ApiError as exc:
        raise LoadFailed(
            spec.name, work.target.origin, exc.words, _advice_on_load(work, exc, info)
        ) from exc
    except ServerUnreachable as exc:
        words = f"{exc.cause} while loading, after {seconds(time.monotonic() - begin)}"
        advice = "The server went away; its log says why."
        if exc.cause == "no answer":
            limit = seconds(terms.load_timeout_s)
            advice = f"ollama_load_timeout is {limit}; raise it if the load needs more."
        raise LoadFailed(spec.name, work.target.origin, words, advice) from exc


def _load(work: _Bringing, kind: LoadKind, info: ModelInfo) -> LoadKind:
    """Load until the server has room in its queue; returns the endpoint that took it."""
    prompt = WARM_UP_PROMPT if work.terms.warm == "prompt" else ""
    options = dict(work.target.spec.options)
    deadline, pause = time.monotonic() + work.terms.load_timeout_s, 0.25
    while True:
        left = deadline - time.monotonic()
        try:
            if work.target.request is None:
                work.client.load(
                    work.name, kind, prompt=prompt, options=options, limit_s=max(left, 1.0)
                )
            else:
                work.client.warm_up(
                    work.name, work.target.request, options=options, limit_s=max(left, 1.0)
                )
            return kind
        except ApiError as exc:
            if exc.status == 503 and left > pause:
                work.enter("busy")
                time.sleep(pause)
                pause = min(5.0, pause * 2)
            # Servers before v0.6.4 do not tell capabilities.
            elif kind == "generate" and info.capabilities is None and _not_for_text(exc):
                kind = "embed"
            else:
                raise


def _ensure_lease(work: _Bringing, kind: LoadKind) -> Resident | None:
    """Ask for the lease where the server gives a shorter one by itself."""
    spec = work.target.spec
    wanted = work.terms.keep_alive_s if spec.keep_alive is None else spec.keep_alive
    try:
        resident = _find(work.client.resident(), spec.model_key)
    except (ApiError, ServerError):
        # Servers before v0.32.4 fail here now and then; the model is loaded all the same.
        return None
    # Two tags that share weights share a runner, listed under the other name: its lease is not
    # known, and a lease must never be sent over a longer one.
    if resident is None or resident.lease_s is None:
        return resident
    if wanted == FOREVER:
        shorter = resident.lease_s < 10 * 365 * 86400
    else:
        shorter = resident.lease_s < wanted - 2
    if shorter:
        work.client.load(
            work.name,
            kind,
            prompt="",
            options=_runner_options(work.target),
            keep_alive=wanted,
            limit_s=work.terms.load_timeout_s,
        )
    return resident


def _runner_options(target: Target) -> dict[str, Any]:
    """Return the options that the model runs with: others would make the server load it again."""
    own = (target.request or {}).get("options")
    asked = own if isinstance(own, dict) else {}
    return {**dict(target.spec.options), **{key: asked[key] for key in RUNNER_KEYS if key in asked}}


def _find(models: list[T], model_key: str) -> T | None:
    for one in models:
        try:
            if ModelName.parse(one.name).key == model_key:
                return one
        except ValueError:
            continue
    return None


def _not_for_text(exc: ApiError) -> bool:
    return "does not support generate" in exc.words


# "invalid character" is a damaged part beside the weights: after a pull that ended with a digest
# mismatch the server takes its other parts as they are (seen on v0.33.0).
_DAMAGED = ("file size", "file magic", "tensor", "incomplete", "corrupt", "invalid character")


def _advice_on_load(work: _Bringing, exc: ApiError, info: ModelInfo | None = None) -> str:
    text = exc.words.lower()
    cure = f"'ollama rm {work.name}' and pull it again."
    if info is not None and _not_for_text(exc) and "completion" in (info.capabilities or ()):
        return f"The server calls it a completion model, so its weights are damaged: {cure}"
    if any(sign in text for sign in ("memory", "cudamalloc", "vram")):
        return f"Try a smaller tag or num_ctx; resident now: {_others(work)}."
    if any(sign in text for sign in _DAMAGED):
        return f"Its weights look damaged: {cure}"
    if exc.status == 503:
        limit = seconds(work.terms.load_timeout_s)
        return f"The server stayed busy for {limit}; see its OLLAMA_MAX_QUEUE."
    if exc.status in (400, 501) and work.target.request is not None:
        return "The request is that of the suite's hook pytest_ollama_warmup_request."
    if "newer version" in text or "incompatible" in text:
        return f"Update Ollama, or {cure}"
    return "The server's log says more."


def _others(work: _Bringing) -> str:
    try:
        names = [one.name for one in work.client.resident()]
    except (ServerError, ApiError):
        return "unknown"
    return ", ".join(names) or "none"
