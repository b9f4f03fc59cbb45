"""Download one model, over as many requests as it takes, and say why where that fails."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_ollama_warmup.errors import (
    ApiError,
    NotOllama,
    PullFailed,
    ServerUnreachable,
    UnknownModel,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.text import count, seconds, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.errors import Cause
    from pytest_ollama_warmup.ollama.client import Client

RUN_AGAIN = "Run again: a pull goes on where it stopped."
# How often a pull is resumed without a new byte, and how long the pause before that is; twice as
# long each time after errors, which come at once. A request that comes before the server has
# noticed that the last one is gone would join the stalled download: v0.33 notices within 10 ms.
RESUMPTIONS = 5
PAUSE_S = 0.5
# Models have tens of parts.
PARTS = 50_000


class Pulled(NamedTuple):
    """What came of a pull: the model's bytes as far as known, and whether any was seen to come.

    *verified* is when, by the monotonic clock, the server checked the digests of all parts.
    """

    size: int
    fresh: bool
    resumed: int
    verified: tuple[float, float] | None = None


class Progress:
    """How far a pull has come, in bytes, by the digest of each part.

    The server rolls stalled parts back, so only a part's highest mark counts.
    """

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, int]] = {}
        self.completed = 0
        """Bytes that are there."""
        self.total = 0
        """Bytes of all parts that the server has named so far."""
        self.fresh = False
        self.verified: tuple[float, float] | None = None

    @property
    def parts(self) -> int:
        """The number of parts that the server has named so far."""
        return len(self._parts)

    def note(self, digest: str, completed: int, total: int) -> None:
        """Hear how far a part has come."""
        mark, whole = self._parts.get(digest, (0, 0))
        self._parts[digest] = (max(mark, completed), max(whole, total))
        self.completed += max(0, completed - mark)
        self.total += max(0, total - whole)

    def __str__(self) -> str:
        return f"{size(self.completed)} of {size(self.total)}"


class OnLine(Protocol):
    """Hears each line of a pull, whether it is *moved* (progress), and how far it has come."""

    def __call__(self, progress: Progress, *, moved: bool) -> None:
        """Hear a line."""


class _Stalled(Exception):
    """No new byte for too long, while the server says that it downloads."""


def pull(
    client: Client,
    spec: ModelSpec,
    origin: str,
    terms: Terms,
    on_line: OnLine,
    on_resume: Callable[[str], None] = lambda why: None,
) -> Pulled:
    """Download a model to its end.

    It is done at a stream's last line, ``success``, and nothing else. What may pass is tried
    again: where no new byte has come for ``stall_s`` the request is dropped and sent again, before
    the server's own retry after 30 s, which throws away what a part had (v0.33, seen).

    Raises:
        UnknownModel: the registry has none of this name.
        PullFailed: an error that does not pass, no progress, or no server any more.
        ServerError: the server came back as something else, or never was Ollama.
    """
    name, progress, resumed, fruitless, damaged = spec.name, Progress(), 0, 0, 0
    while True:
        before = progress.completed
        try:
            _read(client, spec, terms, progress, on_line)
            return Pulled(progress.total, progress.fresh, resumed, progress.verified)
        except (_Stalled, ApiError, ServerUnreachable) as exc:
            why, cause = _reason(exc, terms)
            damaged += cause == "damaged download"
            if not _may_pass(exc, cause, came=progress.completed > 0, damaged=damaged):
                raise _failed(name, origin, why, cause) from exc
        if progress.completed > before:
            fruitless = 0
        elif resumed:
            fruitless += 1
        if fruitless == RESUMPTIONS:
            why += f", also after {count(RESUMPTIONS, 'resumption')}"
            raise _failed(name, origin, why, cause)
        resumed += 1
        if progress.total:
            why += f" at {progress}"
        again = f" ({fruitless + 1} of {RESUMPTIONS})" if fruitless else ""
        on_resume(f"{why}, resuming{again}")
        clock.sleep(PAUSE_S if cause == "stalled" else PAUSE_S * 2**fruitless)
        _wait_for_server(client, spec, origin, terms, why)


def _read(
    client: Client, spec: ModelSpec, terms: Terms, progress: Progress, on_line: OnLine
) -> None:
    """Read one stream to its last line.

    Raises:
        _Stalled, ApiError, ServerUnreachable, NotOllama: as their names say.
    """
    status, moved_at, verifying_at = "", clock.monotonic(), 0.0
    # Of this stream alone: a server that was killed begins again from less than it had.
    marks: dict[str, int] = {}
    lines = client.pull(spec.name, insecure=spec.insecure, silence_s=terms.load_timeout_s)
    with closing(lines):
        for line in lines:
            now, moved, status = clock.monotonic(), line.status != status, line.status
            if status.startswith("verifying"):
                verifying_at = verifying_at or now
            elif verifying_at:
                progress.verified, verifying_at = (verifying_at, now), 0.0
            if digest := line.digest:
                # A part that is there already gives one line, complete.
                progress.fresh = progress.fresh or line.completed < line.total
                progress.note(digest, line.completed, line.total)
                if progress.parts > PARTS:
                    host, seen = client.host, f"more than {PARTS} parts of one model"
                    raise NotOllama(host.url, host.source, seen, host.note, "POST /api/pull")
                # The first word of a part's size is a step forward too, though no byte has come.
                if line.total:
                    moved = moved or line.completed > marks.get(digest, -1)
                    marks[digest] = max(line.completed, marks.get(digest, -1))
            if moved:
                moved_at = now
            # Silence is no stall: the server says nothing while it asks the registry for the
            # manifest and a part's size, and while it verifies.
            elif line.total and now - moved_at > terms.stall_s:
                raise _Stalled(f"no new byte for {seconds(terms.stall_s)} (--ollama-stall)")
            # Nor are lines without a size: another pull, of a model with the same part, asks for
            # it. Who leaves before it hears that crashes the server (v0.33, seen).
            elif now - moved_at > terms.load_timeout_s:
                raise ServerUnreachable(client.host.url, client.host.source, "no answer", 0.0)
            on_line(progress, moved=moved)
    if status != "success":
        words = "the server ended the stream before 'success'"
        host = client.host
        raise ServerUnreachable(host.url, host.source, "connection lost", 0.0, words=words)


def _reason(exc: _Stalled | ApiError | ServerUnreachable, terms: Terms) -> tuple[str, Cause]:
    """Return why a stream ended before its end: for people, and as a value."""
    if isinstance(exc, _Stalled):
        return str(exc), "stalled"
    if isinstance(exc, ApiError):
        return exc.words, exc.cause
    if exc.timed_out:
        limit = seconds(terms.load_timeout_s)
        return f"no word from the server for {limit} (--ollama-load-timeout)", "server silent"
    return exc.why, "server lost"


def _may_pass(exc: Exception, cause: Cause, *, came: bool, damaged: int) -> bool:
    """Whether another request may get further; *came* is whether any byte has."""
    if cause == "damaged download":
        # The server has thrown the part away, and downloads it again.
        return damaged < 2
    if cause == "unknown model":
        return False
    if isinstance(exc, ApiError) and (exc.status == 429 or exc.status >= 500):
        return True
    # A registry that was there a moment ago comes back.
    away = cause == "registry unreachable"
    return (came and away) or cause in (
        "stalled",
        "server lost",
        "registry busy",
        "interrupted download",
    )


def _wait_for_server(client: Client, spec: ModelSpec, origin: str, terms: Terms, why: str) -> None:
    limit_s = terms.comes_back_s
    try:
        client.wait_until_ready(limit_s)
    except ServerUnreachable as exc:
        words = f"{why}, then {exc.why} for {seconds(limit_s)} (--ollama-wait)"
        advice = _advice(spec.name, "server silent")
        raise PullFailed(spec.name, origin, words, advice, "server lost") from exc


_CANNOT_REACH = (
    "The server cannot reach the registry: pull when online, or set HTTPS_PROXY for the server."
)
_ADVICE: dict[Cause, str] = {
    "registry without TLS": "For a registry without TLS write {name},insecure=true.",
    "registry login": "The registry wants a login.",
    "registry unreachable": _CANNOT_REACH,
    "registry busy": f"The registry cannot answer now. {RUN_AGAIN}",
    "interrupted download": _CANNOT_REACH,
    "damaged download": "The server has thrown the damaged part away: run again.",
    "stalled": f"The registry sends nothing. {RUN_AGAIN}",
    "disk full": "Free some space where the server keeps its models.",
    "outdated server": "Update Ollama.",
    "invalid name": "Names are [HOST/][NAMESPACE/]MODEL[:TAG].",
    "server silent": f"Is the server still running? {RUN_AGAIN}",
}


def _failed(name: str, origin: str, why: str, cause: Cause) -> UnknownModel | PullFailed:
    if cause == "unknown model":
        return UnknownModel(name, origin, why)
    return PullFailed(name, origin, why, _advice(name, cause), cause)


def _advice(name: str, cause: Cause) -> str:
    return _ADVICE.get(cause, "Run 'ollama pull {name}' to see more.").format(name=name)
