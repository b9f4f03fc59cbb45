"""Load one model, and see to its keep-alive."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.config.model_specs import FOREVER, RUNNER_KEYS
from pytest_ollama_warmup.errors import (
    ApiError,
    LoadFailed,
    ServerError,
    ServerUnreachable,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.early import Asked
from pytest_ollama_warmup.ollama.requests import GATEWAY_WAITED_S
from pytest_ollama_warmup.ollama.responses import ENDLESS_S, find
from pytest_ollama_warmup.text import seconds
from pytest_ollama_warmup.warmup.locks import held
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.errors import Cause
    from pytest_ollama_warmup.ollama.requests import LoadKind
    from pytest_ollama_warmup.ollama.responses import LoadedModel, ModelInfo
    from pytest_ollama_warmup.warmup.job import Work
    from pytest_ollama_warmup.warmup.plan import Target

WARM_UP_PROMPT = "Hi"
# How long a model that was found in memory must stay there by itself: until the tests use it.
LASTS_S = 120.0
# From this version on the server warms its kernels by itself when it loads a model: a prompt gains
# nothing then, and leaves its tokens in the cache that the tests meet.
WARMS_ITSELF = (0, 30)


def resolve_warm(warm: str, version: str) -> str:
    """Return ``prompt``, ``load`` or ``off`` for ``auto``, by the server's *version*.

    An unknown one, such as the 0.0.0 of a server built from source, counts as new.
    """
    match = re.match(r"v?(\d+)\.(\d+)", version)
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    if warm != "auto":
        return warm
    return "prompt" if (0, 0) < release < WARMS_ITSELF else "load"


def reason_to_leave_out(work: Work, info: ModelInfo) -> str:
    """Say why a model is only pulled; empty where it is loaded."""
    if work.room is None or work.terms.warm == "off" or work.in_cloud(info):
        return ""
    if reason := work.room.reason_to_leave_out(work.target, info):
        work.notes.append("not loaded")
    return reason


def ensure_loaded(work: Work, info: ModelInfo) -> LoadedModel | None:
    """Load a model that is on the server's disk, and return it as the server lists it then.

    Raises:
        LoadFailed: the server cannot, or has gone away.
    """
    spec, terms = work.target.spec, work.terms
    if work.in_cloud(info):
        work.notes.append("runs in the cloud, not warmed")
        return None
    if terms.warm == "off":
        return None
    now = Asked(clock.time(), clock.monotonic())
    loaded = _loaded(work)
    loaded_model = find(loaded or [], spec.model_key)
    asked = _asked_early(work, loaded_model)
    # Where that is not known it must not be unloaded.
    work.found_loaded = asked is None and (loaded_model is not None or loaded is None)
    is_there = loaded_model is not None and _is_as_needed(work, loaded_model)
    if not is_there:
        work.enter("loading")
    elif asked is None and loaded_model is not None:
        _note_already_loaded(work, info, loaded or [], now)
        if _lasts(work, loaded_model):
            return loaded_model
    kind = _kind(info)
    with (
        _load_failures(work, info, now.begin),
        held(
            shared_lock_path("load", work.client.host.url, spec.model_key),
            f"load of {work.name}",
            terms.load_timeout_s,
        ),
    ):
        if work.already_loaded and loaded_model is not None:
            _ask_for_keep_alive(work, kind, loaded_model)
            return loaded_model
        if not is_there:
            kind = _load(work, kind, info)
        since = asked or now
        work.add_step("load", since.start, since.begin, end=since.end if is_there else None)
        if work.target.learned:
            work.notes.append(f"num_ctx {work.target.learned}, learned")
        return _ensure_keep_alive(work, kind, info)


def _kind(info: ModelInfo) -> LoadKind:
    """Return the endpoint that loads a model; servers before v0.6.4 do not list capabilities."""
    able = info.capabilities
    return "generate" if able is None or "completion" in able else "embed"


def _note_already_loaded(
    work: Work, info: ModelInfo, loaded: list[LoadedModel], now: Asked
) -> None:
    work.already_loaded = True
    work.notes.append("already loaded")
    work.add_step("load", now.start, now.begin)
    if work.room is not None:
        work.room.add(work.target, info, loaded)


@contextmanager
def _load_failures(work: Work, info: ModelInfo, begin: float) -> Iterator[None]:
    """Turn what the server says of a load that *begin* began into a LoadFailed."""
    try:
        yield
    except ApiError as exc:
        work.add_failed("load", begin)
        raise failed_load(work, exc, info) from exc
    except ServerUnreachable as exc:
        work.add_failed("load", begin)
        words = f"{exc.why} while loading, after {seconds(clock.monotonic() - begin)}"
        advice = "The server went away; its log says why."
        cause: Cause = "server lost"
        if exc.timed_out:
            limit = seconds(work.terms.load_timeout_s)
            advice = f"--ollama-load-timeout is {limit}; raise it if the load needs more."
            cause = "server silent"
        raise LoadFailed(work.name, work.target.origin, words, advice, cause) from exc


def _asked_early(work: Work, loaded_model: LoadedModel | None) -> Asked | None:
    """Return when the load was asked for before this work, if it is that load that is met here."""
    asked = work.early.asked if work.early is not None else None
    # One that is over, and whose model is gone again, was for nothing.
    return None if asked is not None and asked.end is not None and loaded_model is None else asked


def _loaded(work: Work) -> list[LoadedModel] | None:
    try:
        return work.client.loaded_models()
    except (ApiError, ServerError):
        # Servers before v0.32.4 fail here now and then; what can be loaded is loaded all the same.
        return None


def _is_as_needed(work: Work, loaded_model: LoadedModel) -> bool:
    """Whether a model that is loaded is left as it is.

    A request for it could do harm only: with other options than those that it runs with, some of
    which the server does not show, the model would be reloaded, and again for the tests.
    """
    target, options = work.target, _runner_options(work.target)
    wanted, seen = options.pop("num_ctx", 0), loaded_model.context_length
    asked = work.terms.warm == "prompt" or target.request is not None
    return not (asked or options) and wanted in (0, seen)


def _lasts(work: Work, loaded_model: LoadedModel) -> bool:
    """Whether a model that was found in memory stays there by itself until the tests use it.

    As long as was asked for, where the user has asked.
    """
    wanted = _keep_alive(work)
    asked = work.terms.keep_alive_asked or work.target.spec.keep_alive is not None
    if loaded_model.keep_alive_s is None:
        return True
    enough = ENDLESS_S if wanted == FOREVER else wanted - 2
    return loaded_model.keep_alive_s >= (enough if asked else min(enough, LASTS_S))


def _load(work: Work, kind: LoadKind, info: ModelInfo) -> LoadKind:
    """Load until the server has room in its queue; returns the endpoint that took it."""
    prompt = WARM_UP_PROMPT if work.terms.warm == "prompt" else ""
    options = work.target.options
    deadline, pause = clock.monotonic() + work.terms.load_timeout_s, 0.25
    tried_again = False
    while True:
        left = deadline - clock.monotonic()
        try:
            if work.target.request is None:
                work.client.load(
                    work.name,
                    kind,
                    prompt=prompt,
                    options=options,
                    # A request of its own would load the model again that a test unloads meanwhile.
                    keep_alive=_keep_alive(work) if work.sets_keep_alive else None,
                    limit_s=max(left, 1.0),
                )
            else:
                work.client.warm_up(
                    work.name, work.target.request, options=options, limit_s=max(left, 1.0)
                )
            return kind
        except ApiError as exc:
            if exc.cause == "gateway":
                # The load may be over, or go on, although nobody waits for it any more.
                if find(_loaded(work) or [], work.target.spec.model_key) is not None:
                    return kind
                if tried_again:
                    raise
                tried_again = True
            elif exc.status == 503 and left > pause:
                work.enter("busy")
                clock.sleep(pause)
                pause = min(5.0, pause * 2)
            # Servers before v0.6.4 do not list capabilities.
            elif kind == "generate" and info.capabilities is None and exc.cause == "no text model":
                kind = "embed"
            else:
                raise


def _ensure_keep_alive(work: Work, kind: LoadKind, info: ModelInfo) -> LoadedModel | None:
    """Ask for the keep-alive where the server gives a shorter one by itself."""
    spec, wanted, room = work.target.spec, _keep_alive(work), work.room
    loaded = _loaded(work)
    if loaded is None:
        return None
    loaded_model = find(loaded, spec.model_key)
    if room is not None:
        room.add(work.target, info, loaded)
        # A model with a longer keep-alive is the last to make room. Where room is short the tests'
        # own models, which have none, would displace each other more often than without.
        if room.is_short:
            return loaded_model
    # Two tags that share weights share a runner, listed under the other name: its keep-alive is not
    # known, and a keep-alive must never be sent over a longer one.
    if loaded_model is None or loaded_model.keep_alive_s is None:
        return loaded_model
    # The server's answer may be a little less than what was asked for.
    if loaded_model.keep_alive_s < (ENDLESS_S if wanted == FOREVER else wanted - 2):
        _ask_for_keep_alive(work, kind, loaded_model)
    return loaded_model


def _ask_for_keep_alive(work: Work, kind: LoadKind, loaded_model: LoadedModel) -> None:
    work.sets_keep_alive = True
    options = _runner_options(work.target)
    if work.already_loaded and loaded_model.context_length:
        # Whatever it runs with: without it the server would reload the model.
        options["num_ctx"] = loaded_model.context_length
    work.client.load(
        work.name,
        kind,
        prompt="",
        options=options,
        keep_alive=_keep_alive(work),
        limit_s=work.terms.load_timeout_s,
    )


def _keep_alive(work: Work) -> float:
    own = work.target.spec.keep_alive
    return work.terms.keep_alive_s if own is None else own


def _runner_options(target: Target) -> dict[str, Any]:
    """Return the options that the model runs with: others would make the server load it again."""
    own = (target.request or {}).get("options")
    asked = own if isinstance(own, dict) else {}
    of_request = {key: asked[key] for key in RUNNER_KEYS if key in asked}
    return {**target.options, **of_request}


def failed_load(work: Work, exc: ApiError, info: ModelInfo | None = None) -> LoadFailed:
    """Return what an answer means that is an error, for a model that was to be loaded."""
    advice = _advice(work, exc, info)
    return LoadFailed(work.name, work.target.origin, exc.words, advice, exc.cause)


def _advice(work: Work, exc: ApiError, info: ModelInfo | None) -> str:
    cure = f"'ollama rm {work.name}' and pull it again."
    able = info.capabilities if info is not None else None
    if exc.cause == "no text model" and "completion" in (able or ()):
        return f"The server calls it a completion model, so its weights are damaged: {cure}"
    if exc.cause == "out of memory":
        return f"Try a smaller tag or num_ctx; loaded now: {_others(work)}."
    if exc.cause == "damaged weights":
        return f"Its weights look damaged: {cure}"
    if exc.cause == "gateway":
        return _advice_on_gateway(exc)
    if exc.status == 503:
        limit = seconds(work.terms.load_timeout_s)
        return f"The server stayed busy for {limit}; see its OLLAMA_MAX_QUEUE."
    if exc.status in (400, 501) and work.target.request is not None:
        return "The request is that of the suite's hook pytest_ollama_warmup_request."
    if exc.cause == "outdated server":
        return f"Update Ollama, or {cure}"
    return "The server's log says more."


def _advice_on_gateway(exc: ApiError) -> str:
    directly = "connect to the server directly with --ollama-host URL."
    is_limit = exc.after_s >= GATEWAY_WAITED_S
    if not is_limit and exc.status in (502, 503):
        return f"The gateway did not reach the server. Check that the server runs, or {directly}"
    limit = f", about {seconds(exc.after_s)}," if is_limit else ""
    return (
        f"Raise the time limit of the gateway (proxy_read_timeout in nginx){limit} above what a "
        f"load takes, or {directly}"
    )


def _others(work: Work) -> str:
    try:
        names = [model.name for model in work.client.loaded_models()]
    except (ServerError, ApiError):
        return "unknown"
    return ", ".join(names) or "none"
