"""What a server's answers hold; a field that is missing or odd counts as not told."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = Mapping[str, Any]


_BLOB = re.compile(r"^FROM .*sha256[-:](\w+)\s*$", re.MULTILINE)
# What the server makes of a lease for ever (-1) is a time in centuries.
ENDLESS_S = 10 * 365 * 86400


class ModelInfo(NamedTuple):
    """What ``POST /api/show`` says; *capabilities* is None before v0.6.4, which has no field.

    *weights* is the digest of the weights, in bare hex, and empty where the server does not say:
    models with equal weights share one place in memory. *parameters* are those of the model's own
    Modelfile.
    """

    capabilities: tuple[str, ...] | None
    remote_host: str
    weights: str = ""
    parameters: str = ""

    @classmethod
    def read(cls, data: Json) -> ModelInfo:
        """Read the answer."""
        told = data.get("capabilities")
        capabilities = tuple(clean(one, 40) for one in told) if isinstance(told, list) else None
        # The path of a blob; only the first FROM is of weights, a second one is of an adapter.
        blob = _BLOB.search(str(data.get("modelfile")))
        return cls(
            capabilities,
            clean(data.get("remote_host") or "", 100),
            blob[1] if blob else "",
            clean(data.get("parameters") or "", 2000),
        )


class PullProgress(NamedTuple):
    """One line of a pull's stream; *total* and *completed* are bytes of the part *digest*."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0

    @classmethod
    def read(cls, data: Json) -> PullProgress:
        """Read a line."""
        return cls(
            clean(data.get("status", ""), 100),
            clean(data.get("digest", ""), 100),
            _whole(data.get("total")),
            _whole(data.get("completed")),
        )


class Stored(NamedTuple):
    """A model on the server's disk, from ``GET /api/tags``: *digest* in bare hex, *size* in bytes.

    The digest is that of the manifest: a copy under another name has the same.
    """

    name: str
    digest: str
    size: int

    @classmethod
    def read(cls, data: Json) -> Stored:
        """Read one of the models."""
        digest = clean(data.get("digest") or "", 100).removeprefix("sha256:")
        return cls(_name(data), digest, _whole(data.get("size")))


class Resident(NamedTuple):
    """A model in memory, from ``GET /api/ps``; *lease_s* is the rest of its keep-alive.

    *expires* is ``expires_at`` as the server wrote it. It moves when a request completes, and
    stands still otherwise (tried on v0.6.5 and v0.33), so a change proves that the model was used.
    """

    name: str
    digest: str
    size: int
    context_length: int
    lease_s: float | None
    expires: str = ""

    @classmethod
    def read(cls, data: Json, now: datetime) -> Resident:
        """Read one of the models; *now* is the server's time."""
        return cls(
            _name(data),
            clean(data.get("digest") or "", 100),
            _whole(data.get("size")),
            _whole(data.get("context_length")),
            _seconds_until(data.get("expires_at"), now),
            clean(data.get("expires_at") or "", 100),
        )


def parse(content: bytes | str) -> Any:
    """Return what JSON says, None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def server_time(date: str | None) -> datetime:
    """Return the time in an answer's ``Date``, ours where it has none.

    With another machine's clock a lease would be off by the difference.
    """
    try:
        return parsedate_to_datetime(date or "")
    except ValueError:
        return datetime.now(UTC)


def _name(data: Json) -> str:
    return clean(data.get("name") or data.get("model") or "", 500)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _seconds_until(text: object, now: datetime) -> float | None:
    try:
        return (datetime.fromisoformat(str(text)) - now).total_seconds()
    except (ValueError, TypeError):
        return None
