"""Pull, check and load one model."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

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
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.names import closest, is_cloud, meant_by
from pytest_ollama_warmup.ollama.responses import UNKNOWN, ModelInfo, find
from pytest_ollama_warmup.text import explained
from pytest_ollama_warmup.warmup.job import Event, Work, failed
from pytest_ollama_warmup.warmup.load import ensure_loaded, failed_load, reason_to_leave_out
from pytest_ollama_warmup.warmup.locks import Heartbeat, held
from pytest_ollama_warmup.warmup.outcome import NOTICEABLE_S, Outcome, Step
from pytest_ollama_warmup.warmup.pull import RUN_AGAIN, Progress, pull
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.ollama.responses import LocalModel


# How long the server may take to list its models before it is asked for this one alone.
LIST_S = 5.0
_AT_ANY_TIME: AbstractContextManager[object] = nullcontext()


def ensure_pulled(work: Work, by: str) -> Outcome:
    """Make one model local, whatever that takes; a failure is an outcome, not an exception.

    Not more pulls go on at a time than the work says.
    """
    target = work.target
    try:
        work.enter("checking")
        _look_for(work)
        info = _ensure_present(work)
        if info is UNKNOWN:
            work.notes.append("details unknown")
        local = _check_pin(work, info)
    except WarmupError as exc:
        return failed(target, exc, by, tuple(work.steps))._replace(aside=tuple(work.aside))
    if local is not None:
        # A part that is there within 60 ms is not counted in a pull, nor is its size.
        work.steps = [
            step._replace(size=local.size) if step.kind == "pull" else step for step in work.steps
        ]
    work.enter("present", why=work.kept)
    return Outcome(
        key=target.key,
        model=work.name,
        status="ready",
        by=by,
        notes=tuple(work.notes),
        steps=tuple(work.steps),
        digest=local.digest if local else "",
        size=local.size if local else 0,
        capabilities=info.capabilities,
        options=target.spec.options,
        learned=target.learned,
        pin=target.spec.digest,
        weights=info.weights,
        parameters=info.parameters,
        remote_host=info.remote_host,
        origin=target.origin,
        aside=tuple(work.aside),
    )


def ensure_warm(
    work: Work,
    pulled: Outcome,
    by: str,
    loading: AbstractContextManager[object] = _AT_ANY_TIME,
) -> Outcome:
    """Load a model that is local, as *pulled* says; a failure is an outcome, not an exception.

    *loading* is held while it is loaded. Where the work has a room, a model that does not fit
    among others is left out.
    """
    info = ModelInfo(pulled.capabilities, pulled.remote_host, pulled.weights, pulled.parameters)
    try:
        with ExitStack() as turn:
            with work.noting("wait", least_s=NOTICEABLE_S):
                turn.enter_context(loading)
            left_out = reason_to_leave_out(work, info)
            loaded_model = None if left_out else ensure_loaded(work, info)
    except WarmupError as exc:
        outcome = failed(work.target, exc, by, (*pulled.steps, *work.steps))
        return outcome._replace(aside=(*pulled.aside, *work.aside))
    return pulled._replace(
        by=by,
        notes=(*pulled.notes, *work.notes),
        steps=(*pulled.steps, *work.steps),
        context_length=loaded_model.context_length if loaded_model else 0,
        listed=loaded_model is not None,
        found_loaded=work.found_loaded,
        learned=work.target.learned,
        sets_keep_alive=work.sets_keep_alive,
        left_out=left_out,
        already_loaded=work.already_loaded,
        memory=loaded_model.size if loaded_model else 0,
        vram=loaded_model.size_vram if loaded_model else 0,
        aside=(*pulled.aside, *work.aside),
    )


def _look_for(work: Work) -> None:
    """Note what the server's list of models says of this one, and say so where that settles it.

    The list takes 2 ms. What a model can do takes 0.2 s for one with a large vocabulary, which the
    server reads for it (v0.33, gemma-3-270m): collection need not wait for that.
    """
    if is_cloud(work.name):
        return
    try:
        work.listed = work.client.local_models(limit_s=min(LIST_S, _limit_s(work)))
    except (ApiError, ServerError):
        # Whoever cannot list may still show.
        return
    spec = work.target.spec
    # A pin that does not fit ends the run before collection, as a model does that is missing.
    if find(work.listed, spec.model_key) and not work.refreshes and not spec.digest:
        work.enter("local")


def _ensure_present(work: Work) -> ModelInfo:
    name, target = work.name, work.target
    info = _show(work)
    if is_cloud(name) and info is None:
        raise NotPulled(name, target.origin, True)
    if info is not None and work.in_cloud(info):
        return info
    if info is not None and not work.refreshes:
        return info
    if not work.terms.may_pull(target.given_by):
        never = work.terms.pull == "never"
        meant, alias = _meant(work)
        raise NotPulled(name, target.origin, meant=meant, alias=alias, never=never)
    with _turn_to_pull(work) as heartbeat:
        if work.waited and info is None and (pulled_by_another := _show(work)) is not None:
            return pulled_by_another
        try:
            _pull(work, heartbeat, info)
        except (UnknownModel, PullFailed) as exc:
            if info is None and isinstance(exc, UnknownModel):
                raise UnknownModel(exc.model, exc.origin, exc.words, *_meant(work)) from exc
            if info is None:
                raise
            # Refreshing was asked for, not a new model: an old one beats none.
            work.notes.append("not refreshed")
            work.enter(
                "outdated",
                why=explained(
                    f"is not refreshed, what is there is used: {exc.words}", "not-refreshed"
                ),
            )
            return info
    # A stream can end with success for a manifest whose parts were cleared away meanwhile.
    info = _show(work)
    if info is None:
        raise PullFailed(name, target.origin, "pulled, but the server does not show it", RUN_AGAIN)
    return info


def _pull(work: Work, heartbeat: Heartbeat, info: ModelInfo | None) -> None:
    """Pull the model, and note what came of it; *info* is what is there of it already.

    Raises:
        UnknownModel, PullFailed, ServerError: see ``pull``.
    """
    work.enter("pulling")
    start, begin = clock.time(), clock.monotonic()

    def on_line(progress: Progress, *, moved: bool) -> None:
        if moved:
            # For those who wait for this download, and for those who wait for this model.
            heartbeat()
            work.heartbeat()
        if info is not None and not progress.fresh:
            # A refresh that finds all parts there is no download to announce.
            return
        work.say(Event(work.target, "pulling", progress.completed, progress.total))

    def on_resume(why: str) -> None:
        work.enter("resuming", why=why)

    target, work.listed = work.target, []
    try:
        pulled = pull(work.client, target.spec, target.origin, work.terms, on_line, on_resume)
    except WarmupError:
        work.add_failed("pull", begin)
        raise
    if info is not None and not pulled.fresh:
        work.notes.append("up to date")
        work.kept = "is up to date"
    else:
        work.add_step("pull", start, begin, pulled.size)
    if pulled.verified is not None:
        since, until = pulled.verified
        work.aside.append(Step("verify", start + since - begin, until - since))
    if pulled.resumed:
        times = "once" if pulled.resumed == 1 else f"{pulled.resumed} times"
        work.notes.append(f"resumed {times}")


def _meant(work: Work) -> tuple[str, str]:
    """Return the local model and the alias that were meant, if the name looks like a slip."""
    alias = closest(work.name, work.terms.aliases)
    try:
        models = work.listed or work.client.local_models(limit_s=_limit_s(work))
        return meant_by(work.name, [model.name for model in models]), alias
    except (ApiError, ServerError):
        return "", alias


@contextmanager
def _turn_to_pull(work: Work) -> Iterator[Heartbeat]:
    """Wait until fewer than four pulls of this run are under way, and none of this model by others.

    Waiting is progress too: whoever waits for this model in turn must not give up.
    """
    work.enter("queued")
    lock = held(
        shared_lock_path("pull", work.client.host.url, work.target.spec.model_key),
        f"pull of {work.name}",
        work.terms.load_timeout_s,
        lambda: work.enter("waiting"),
    )
    with ExitStack() as turn:
        with work.noting("wait", least_s=NOTICEABLE_S):
            while not work.pulls.acquire(timeout=1.0):
                work.waited = True
                work.heartbeat()
            turn.callback(work.pulls.release)
            heartbeat = turn.enter_context(lock)
        yield heartbeat


_CLOUD_ACCESS = "Sign the server in with 'ollama signin', without OLLAMA_NO_CLOUD."


def _check_pin(work: Work, info: ModelInfo) -> LocalModel | None:
    """Return what the server says of the model on its disk; None where it does not."""
    spec = work.target.spec
    if work.in_cloud(info):
        return None
    try:
        # On a disk that is busy with what was just pulled the server may take a while to list it.
        local = find(work.listed, spec.model_key) or find(
            work.client.local_models(limit_s=_limit_s(work)), spec.model_key
        )
    except (ApiError, ServerUnreachable) as exc:
        if not spec.digest:
            # A model can be loaded by a server that is too slow, or not able, to list all it has.
            return None
        words, cause = exc.words, exc.cause
        if isinstance(exc, ServerUnreachable):
            words, cause = exc.why, "server lost"
        advice = "Its digest is not known, and the pin cannot be checked."
        raise LoadFailed(work.name, work.target.origin, words, advice, cause) from exc
    digest = local.digest if local else ""
    if not spec.is_version(digest):
        raise OtherDigest(work.name, work.target.origin, spec.digest, digest)
    if spec.digest:
        work.notes.append("digest as pinned")
    return local


def _show(work: Work) -> ModelInfo | None:
    begin = clock.monotonic()
    try:
        with work.noting("show"):
            return work.client.show(work.name, limit_s=_limit_s(work))
    except ServerUnreachable as exc:
        host, words = work.client.host, exc.words
        if exc.timed_out:
            words = f"{exc.why} to POST /api/show"
        waited_s = clock.monotonic() - begin
        raise ServerUnreachable(host.url, host.source, exc.cause, waited_s, words=words) from exc
    except AccessDenied as exc:
        if not is_cloud(work.name):
            raise
        # Of ollama.com, passed on by the server: no key of ours would help.
        raise LoadFailed(
            work.name, work.target.origin, exc.words, _CLOUD_ACCESS, "registry login"
        ) from exc
    except ApiError as exc:
        raise failed_load(work, exc) from exc


def _limit_s(work: Work) -> float:
    """Return how long an answer may take that needs the server's disk only."""
    return min(60.0, work.terms.load_timeout_s)
