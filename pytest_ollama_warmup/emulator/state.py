"""What an emulated Ollama has and does: connections read it, tests change it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ollama_warmup.emulator.scheduler import Scheduler
    from pytest_ollama_warmup.emulator.script import Fault
    from pytest_ollama_warmup.emulator.store import Store

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; *model* as the client spelled it, header names in lower case."""

    method: str
    path: str
    model: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at: float
    """``time.monotonic()``."""


@dataclass(slots=True, eq=False)
class State:
    """Everything but the socket: models on disk and in memory, faults, and the log of requests."""

    store: Store
    scheduler: Scheduler
    version: str
    default_num_ctx: int
    log: list[Request] = field(default_factory=list)
    canned: tuple[int, str, bytes] | None = None
    """The answer to every request: status, content type and body."""
    tells_capabilities: bool = True
    """Whether it says what models can do; servers before v0.6.4 do not."""
    edit_ps: Callable[[list[Body]], list[Body] | None] = lambda models: models
    """What it makes of its list of loaded models; None is 404, as from a proxy."""
    ready_at: float = 0.0
    """When it begins to answer, by ``time.monotonic()``."""
    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def starting_s(self) -> float:
        """The seconds until it begins to answer."""
        return self.ready_at - time.monotonic()

    def take_fault(self, path: str) -> Fault | None:
        """Return the first fault for a request to *path*, and count it as used."""
        with self._lock:
            fault = next((entry for entry in self.faults if entry.path in ("", path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
            return fault
