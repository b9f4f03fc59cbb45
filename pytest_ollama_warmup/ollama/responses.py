"""What a server's answers hold; a field that is missing or odd counts as unknown."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = Mapping[str, Any]

T = TypeVar("T", "LoadedModel", "LocalModel")
_BLOB = re.compile(r"^FROM .*sha256[-:](\w+)\s*$", re.MULTILINE)
# What the server makes of a keep-alive without limit (-1) is a time in centuries.
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
        listed = data.get("capabilities")
        capabilities = (
            tuple(clean(capability, 40) for capability in listed)
            if isinstance(listed, list)
            else None
        )
        # The path of a blob; only the first FROM is of weights, a second one is of an adapter.
        blob = _BLOB.search(str(data.get("modelfile")))
        return cls(
            capabilities,
            clean(data.get("remote_host") or "", 100),
            blob[1] if blob else "",
            clean(data.get("parameters") or "", 2000),
        )


UNKNOWN = ModelInfo(None, "")
"""Of a model that is there, on a server that says no more."""


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


class LocalModel(NamedTuple):
    """A model on the server's disk, from ``GET /api/tags``: *digest* in bare hex, *size* in bytes.

    The digest is that of the manifest: a copy under another name has the same.
    """

    name: str
    digest: str
    size: int

    @classmethod
    def read(cls, data: Json) -> LocalModel:
        """Read one of the models."""
        digest = clean(data.get("digest") or "", 100).removeprefix("sha256:")
        return cls(_name(data), digest, _whole(data.get("size")))


class LoadedModel(NamedTuple):
    """A model in memory, from ``GET /api/ps``; *keep_alive_s* is the rest of its keep-alive.

    *size_vram* is the part of its size that is on a GPU.

    *expires* is ``expires_at`` as the server wrote it. It moves when a request completes, and
    stands still otherwise (tried on v0.6.5 and v0.33), so a change proves that the model was used.
    """

    name: str
    digest: str
    size: int
    context_length: int
    keep_alive_s: float | None
    expires: str = ""
    size_vram: int = 0

    @classmethod
    def read(cls, data: Json, now: datetime) -> LoadedModel:
        """Read one of the models; *now* is the server's time."""
        return cls(
            _name(data),
            clean(data.get("digest") or "", 100),
            _whole(data.get("size")),
            _whole(data.get("context_length")),
            _seconds_until(data.get("expires_at"), now),
            clean(data.get("expires_at") or "", 100),
            _whole(data.get("size_vram")),
        )


def parse(content: bytes | str) -> Any:
    """Return what JSON says, None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def models_in(data: Json) -> list[dict[str, Any]]:
    """Return the models that the answer of ``/api/tags`` or ``/api/ps`` lists."""
    models = data.get("models")
    entries = models if isinstance(models, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def loaded_in(models: list[dict[str, Any]], date: str | None) -> list[LoadedModel]:
    """Return *models* as they are in memory; *date* is the answer's header.

    Leases are measured by the server's own clock.
    """
    now = server_time(date)
    return [LoadedModel.read(model, now) for model in models]


def server_time(date: str | None) -> datetime:
    """Return the time in an answer's ``Date``, ours where it has none.

    With another machine's clock a keep-alive would be off by the difference.
    """
    try:
        moment = parsedate_to_datetime(date or "")
    # A year beyond all bounds is an OverflowError.
    except (ValueError, OverflowError, TypeError, IndexError):
        return datetime.now(UTC)
    # "-0000" is a time without a place.
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def find(models: list[T], model_key: str) -> T | None:
    """Return the one of *models* that a name means."""
    for model in models:
        try:
            if ModelName.parse(model.name).key == model_key:
                return model
        except ValueError:
            continue
    return None


def loaded_as(loaded_models: list[LoadedModel], model_key: str, digest: str) -> LoadedModel | None:
    """Return what is in memory of a model, also where the server lists it under another name."""
    return find(loaded_models, model_key) or same(loaded_models, digest)


def same(models: list[T], digest: str) -> T | None:
    """Return the one of *models* with this digest, also under another name."""
    return next((model for model in models if digest and model.digest == digest), None)


def _name(data: Json) -> str:
    return clean(data.get("name") or data.get("model") or "", 500)


def _whole(value: object) -> int:
    # What does not fit into the server's own type is none of its numbers.
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value < 1 << 63 else 0


def _seconds_until(text: object, now: datetime) -> float | None:
    try:
        return (datetime.fromisoformat(str(text)) - now).total_seconds()
    except (ValueError, TypeError):
        return None
