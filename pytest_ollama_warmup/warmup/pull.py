"""Download one model, and say why where that fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_ollama_warmup.errors import ApiError, PullFailed, ServerUnreachable, UnknownModel
from pytest_ollama_warmup.text import seconds, size

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.warmup.spec import ModelSpec

RUN_AGAIN = "Run again: a pull goes on where it stopped."


class Pulled(NamedTuple):
    """What a pull brought: the model's bytes as far as told, and whether any was seen to come."""

    size: int
    fresh: bool


class OnLine(Protocol):
    """Hears each line of a pull: bytes so far, bytes in all, and whether that is progress."""

    def __call__(self, completed: int, total: int, *, moved: bool) -> None:
        """Hear a line."""


def pull(client: Client, spec: ModelSpec, origin: str, limit_s: float, on_line: OnLine) -> Pulled:
    """Download a model to its end.

    It is done at the stream's last line, ``success``, and nothing else. *limit_s* is how long no
    new byte may come.

    Raises:
        UnknownModel: the registry has none of this name.
        PullFailed: an error line, a stream that ends early, no progress, or no server any more.
    """
    name, status, moved_at = spec.name, "", time.monotonic()
    totals: dict[str, int] = {}
    fresh = False
    # The server rolls stalled parts back, so only the highest mark of a part is progress.
    marks: dict[str, int] = {}
    try:
        for line in client.pull(name, insecure=spec.insecure, silence_s=limit_s):
            now, moved, status = time.monotonic(), line.status != status, line.status
            if line.digest:
                # A part that is there already gives one line, complete.
                fresh = fresh or line.completed < line.total
                totals[line.digest] = max(line.total, totals.get(line.digest, 0))
                moved = moved or line.completed > marks.get(line.digest, 0)
                marks[line.digest] = max(line.completed, marks.get(line.digest, 0))
            moved_at = now if moved else moved_at
            if now - moved_at > limit_s:
                still = f"no new byte for {seconds(limit_s)} (ollama_load_timeout)"
                raise PullFailed(name, origin, still, RUN_AGAIN)
            on_line(sum(marks.values()), sum(totals.values()), moved=moved)
    except ApiError as exc:
        if "file does not exist" in exc.words:
            raise UnknownModel(name, origin, exc.words) from exc
        raise PullFailed(name, origin, exc.words, _advice(name, exc.words)) from exc
    except ServerUnreachable as exc:
        cause = exc.cause
        if cause == "no answer":
            cause = f"no word from the server for {seconds(limit_s)} (ollama_load_timeout)"
        elif totals:
            cause += f" at {size(sum(marks.values()))} of {size(sum(totals.values()))}"
        raise PullFailed(name, origin, cause, f"Is the server still running? {RUN_AGAIN}") from exc
    if status != "success":
        raise PullFailed(name, origin, "the server ended the stream before 'success'", RUN_AGAIN)
    return Pulled(sum(totals.values()), fresh)


def _advice(name: str, words: str) -> str:
    text = words.lower()
    for signs, advice in (
        (
            ("http response to https", "tls: first record", "tls handshake"),
            f"For a registry without TLS write {name},insecure=true.",
        ),
        (("unauthorized", "access denied", "realm host"), "The registry wants a login."),
        (("no space left",), "Free some space where the server keeps its models."),
        # Not a bare 412, which digests and ports hold too.
        (("newer version", "manifest: 412:"), "Update Ollama."),
        (
            ("no such host", "connection refused", "timeout", "unreachable", "eof"),
            "The server cannot reach the registry: pull while online, or see its proxy settings.",
        ),
        (("digest mismatch",), "The server has thrown the damaged part away: run again."),
        (("invalid model name",), "Names are [HOST/][NAMESPACE/]MODEL[:TAG]."),
    ):
        if any(sign in text for sign in signs):
            return advice
    return f"Run 'ollama pull {name}' to see more."
