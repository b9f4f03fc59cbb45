"""The models on an emulated Ollama's disk, and those on their way to it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from pytest_ollama_warmup.emulator.script import (
    ConnectionDropped,
    Refusal,
    ScriptedModel,
    parse_name,
)
from pytest_ollama_warmup.ollama.names import ModelName

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_TICK_S = 0.06
# Bytes a second that nobody can tell from none at all.
_AT_ONCE = 1e15


@dataclass(slots=True)
class _Download:
    """The weights of one model on their way; all clients that pull it watch the same bytes.

    *kept* are those from before *since*, when the first of the present clients came; *faulty* says
    whether these clients meet the faults of the script.
    """

    kept: int = 0
    clients: int = 0
    since: float = 0.0
    faulty: bool = False

    def completed(self, model: ScriptedModel) -> int:
        rate, passed_s = model.pull_rate or _AT_ONCE, time.monotonic() - self.since
        stall_at = model.pull_stall_at if self.faulty else None
        reached = self.kept + passed_s * rate
        if stall_at is not None and self.kept <= stall_at < reached:
            stood_s = passed_s - (stall_at - self.kept) / rate
            reached = _stalled(model, stall_at, stood_s, rate)
        return min(self.reach(model), int(reached))

    def reach(self, model: ScriptedModel) -> int:
        """Return the byte at which a pull ends, well or not."""
        if not self.faulty:
            return model.size
        reach = model.size // 2 if model.pull_cut else model.size
        return min(reach, model.size if model.pull_drop_at is None else model.pull_drop_at)


def _stalled(model: ScriptedModel, at: int, stood_s: float, rate: float) -> float:
    """Return how far a download is that came to its stall *stood_s* ago."""
    if model.pull_stall_s is not None and stood_s >= model.pull_stall_s:
        return at + (stood_s - model.pull_stall_s) * rate
    # The server gives a part that stands still up, and downloads it anew up to the same byte.
    lap_s = stood_s % (model.pull_retry_s + at / rate)
    return at if lap_s < model.pull_retry_s else (lap_s - model.pull_retry_s) * rate


class Store:
    """The models on disk and in the registry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, ScriptedModel] = {}
        self._downloads: dict[str, _Download] = {}

    def add(self, model: ScriptedModel) -> None:
        """Add a copy of *model*, or change the one of its name; work under way goes on by it."""
        name = ModelName.parse(model.name)
        digest = model.digest or hashlib.sha256(name.key.encode()).hexdigest()
        new = replace(model, name=name.short, digest=digest, weights=model.weights or digest)
        with self._lock:
            entry = self._models.setdefault(name.key, new)
            for each in fields(ScriptedModel):
                setattr(entry, each.name, getattr(new, each.name))

    def find(self, name: str) -> ScriptedModel | None:
        """Return the model that *name* means, pulled or not.

        Raises:
            Refusal: 400, no valid name.
        """
        key = parse_name(name).key
        with self._lock:
            return self._models.get(key)

    def present(self) -> list[ScriptedModel]:
        """Return the models on disk."""
        with self._lock:
            return [model for model in self._models.values() if model.present]

    def pulling(self) -> list[str]:
        """Return the names of the models that are on their way."""
        with self._lock:
            under_way = {
                weights for weights, download in self._downloads.items() if download.clients
            }
            return [model.name for model in self._models.values() if model.weights in under_way]

    def pull(
        self, model: ScriptedModel | None, pause: Callable[[float], None]
    ) -> Generator[dict[str, object], None, None]:
        """Play a pull of *model*, None is unknown to the registry; yields the lines of its stream.

        *pause* sleeps, and raises when the client has gone.

        Raises:
            Refusal: the error line that ends the stream.
            ConnectionDropped: it ends without one, and without an end.
        """
        yield {"status": "pulling manifest"}
        if model is None or not model.in_registry:
            raise Refusal(500, "pull model manifest: file does not exist")
        faulty = self._takes_fault(model)
        if faulty and model.pull_error is not None:
            raise Refusal(500, model.pull_error)
        line: dict[str, object] = {
            "status": f"pulling {model.weights[:12]}",
            "digest": f"sha256:{model.weights}",
            "total": model.size,
        }
        if model.present:
            yield {**line, "completed": model.size}
        else:
            with self._joined(model, faulty=faulty) as download:
                while (done := download.completed(model)) < download.reach(model):
                    # Go leaves out fields that are zero.
                    yield {**line, "completed": done} if done else line
                    pause(_TICK_S)
                yield {**line, "completed": done}
            if faulty and model.pull_drop_at is not None:
                raise ConnectionDropped
        if faulty and model.pull_cut:
            return
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        with self._lock:
            model.present = True
            self._downloads.pop(model.weights, None)
        yield {"status": "success"}

    def delete(self, model: ScriptedModel) -> None:
        """Take *model* from the disk; it can be pulled again."""
        with self._lock:
            model.present = False

    def _takes_fault(self, model: ScriptedModel) -> bool:
        with self._lock:
            if not model.pull_faults:
                return model.pull_faults is None
            model.pull_faults -= 1
            return True

    @contextlib.contextmanager
    def _joined(self, model: ScriptedModel, *, faulty: bool) -> Iterator[_Download]:
        with self._lock:
            download = self._downloads.setdefault(model.weights, _Download())
            if not download.clients:
                download.since, download.faulty = time.monotonic(), faulty
            download.clients += 1
        try:
            yield download
        finally:
            with self._lock:
                # The last client that leaves stops the download; its bytes are kept.
                if download.clients == 1:
                    download.kept = download.completed(model)
                download.clients -= 1
