"""The models in a server's memory and those wanted there, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.ollama.answers import ENDLESS_S
from pytest_ollama_warmup.report.table import SIGNS, columns
from pytest_ollama_warmup.text import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

State = Literal["resident", "cold", "not pulled", "other version", "in the cloud"]
_HEAD = ("model", "resident", "wanted", "context", "expires", "memory")
_RESIDENT = {"resident": "yes", "cold": "no", "not pulled": "no, not pulled"}
_UNLOADED = {
    "unloaded": "unloaded",
    "cold": "was not in memory",
    "in use": "in use, goes when its requests are over",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model that is resident, or *wanted*: its spec, empty where nobody wants it.

    *lease_s* is -1 for ever, and None where the server does not tell; *size* is in bytes.
    """

    model: str
    state: State
    wanted: str = ""
    wanted_context: int | None = None
    context_length: int = 0
    lease_s: float | None = None
    size: int = 0
    digest: str = ""

    @property
    def lacking(self) -> bool:
        """Whether it is not there as it is wanted."""
        return self.state not in ("resident", "in the cloud")


def status_lines(rows: Iterable[Row], *, plain: bool = False) -> list[str]:
    """Return the table, with a line above that names its columns; *plain* keeps to ASCII."""
    cells: list[tuple[str, ...]] = [(" ", *_HEAD)]
    for row in rows:
        sign = SIGNS[plain][row.lacking] if row.wanted else " "
        cells.append((sign, *_cells(row)))
    return columns(cells) if cells[1:] else []


def unload_lines(models: Iterable[Mapping[str, Any]], *, plain: bool = False) -> list[str]:
    """Return a line for each model that was to be unloaded; *plain* keeps to ASCII."""
    rows = []
    for one in models:
        words = _UNLOADED[one["state"]]
        told = size(one["size"]) if one["state"] == "unloaded" else ""
        rows.append((SIGNS[plain][one["state"] == "in use"], one["model"], words, told))
    return columns(rows)


def lease(left_s: float) -> float:
    """Return the rest of a lease as requests write it: -1 for ever."""
    return -1.0 if left_s > ENDLESS_S else max(0.0, left_s)


def _cells(row: Row) -> tuple[str, ...]:
    context = str(row.context_length or "")
    if context and row.wanted_context not in (None, row.context_length):
        context += f", wanted {row.wanted_context}"
    return (
        row.model,
        _RESIDENT.get(row.state, row.state),
        "yes" if row.wanted else "no",
        context,
        "" if row.lease_s is None else _until(row.lease_s),
        size(row.size) if row.size else "",
    )


def _until(left_s: float) -> str:
    """Say when a lease ends: ``in 9 min``."""
    if left_s <= 0:
        # A model at work keeps its lease from before, which may be over.
        return "never" if left_s else "when idle"
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60)):
        if left_s >= 1.95 * scale:
            return f"in {left_s / scale:.0f} {unit}"
    return f"in {left_s:.0f} s"
