"""The tables of ``ollama-warmup status`` and ``unload``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.ollama.responses import ENDLESS_S
from pytest_ollama_warmup.report.columns import SIGNS, columns
from pytest_ollama_warmup.text import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

State = Literal["loaded", "not loaded", "not pulled", "other version", "in the cloud"]
_HEAD = ("NAME", "SIZE", "CONTEXT", "UNTIL")
# Longer names lose their middle before others lose anything.
_LEAST_NAME = 12
_UNLOADED = {
    "unloaded": "unloaded",
    "not loaded": "was not loaded",
    "other version": "was not loaded; another version is",
    "in the cloud": "runs in the cloud",
    "in use": "still in use; unloads when its requests end",
    "not found": "neither loaded nor local",
}
_FAILED = ("in use", "not found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model that is loaded, or *wanted*: the spec that names it, empty if none does.

    *keep_alive_s* is -1 for no limit, and None if the server does not say; *size* is in bytes.
    """

    model: str
    state: State
    wanted: str = ""
    wanted_context: int | None = None
    context_length: int = 0
    keep_alive_s: float | None = None
    size: int = 0
    digest: str = ""
    did_you_mean: str = ""
    """A local model with nearly the same name as the one that is wanted and not local."""

    @property
    def missing(self) -> bool:
        """Whether it is wanted and not loaded."""
        return bool(self.wanted) and self.state not in ("loaded", "in the cloud")

    @property
    def to_load(self) -> str:
        """What to load where it is missing, with its options; of a slip the model that is meant."""
        name, comma, options = self.wanted.partition(",")
        return f"{self.did_you_mean or name}{comma}{options}"


def status_lines(rows: Iterable[Row], *, plain: bool = False, width: int = 0) -> list[str]:
    """Return the table with its head; *plain* keeps to ASCII, *width* 0 is any width."""
    cells: list[tuple[str, ...]] = [(" ", *_HEAD)]
    for row in rows:
        sign = SIGNS[plain][row.missing] if row.wanted else " "
        cells.append((sign, *_cells(row)))
    return _fitted(cells, plain, width) if cells[1:] else []


def unload_lines(
    models: Iterable[Mapping[str, Any]], *, plain: bool = False, width: int = 0
) -> list[str]:
    """Return a line for each model that was to be unloaded; the options are as above."""
    cells: list[tuple[str, ...]] = []
    for model in models:
        words = _UNLOADED[model["state"]]
        if model["did_you_mean"]:
            words += f"; did you mean {model['did_you_mean']}?"
        if model["state"] == "unloaded":
            words += f" ({size(model['size'])})"
        cells.append((SIGNS[plain][model["state"] in _FAILED], model["model"], words))
    return _fitted(cells, plain, width)


def keep_alive(left_s: float) -> float:
    """Return the rest of a keep-alive as requests write it: -1 for no limit."""
    return -1.0 if left_s > ENDLESS_S else max(0.0, left_s)


def _fitted(cells: list[tuple[str, ...]], plain: bool, width: int) -> list[str]:
    """Return the lines of a table; names that are too long for *width* lose their middle."""
    lines = columns(cells)
    widest = max(map(len, lines), default=0)
    if width and widest > width:
        names = max(len(row[1]) for row in cells)
        room = max(_LEAST_NAME, names - (widest - width))
        lines = columns([(row[0], _cut(row[1], room, plain), *row[2:]) for row in cells])
    return lines


def _cut(name: str, room: int, plain: bool) -> str:
    if len(name) <= room:
        return name
    gap = "..." if plain else "…"
    # The end says more: it has the tag.
    end = (room - len(gap)) * 2 // 3
    return f"{name[: room - len(gap) - end]}{gap}{name[-end:]}"


def _cells(row: Row) -> tuple[str, ...]:
    context = str(row.context_length or "")
    if context and row.wanted_context not in (None, row.context_length):
        context += f" (wanted {row.wanted_context})"
    return (row.model, size(row.size) if row.size else "", context, _until(row))


def _until(row: Row) -> str:
    match row.state:
        case "loaded":
            return "" if row.keep_alive_s is None else _from_now(row.keep_alive_s)
        case "other version":
            return "another version is loaded"
        case "in the cloud":
            return "runs in the cloud"
        case state:
            return state


def _from_now(left_s: float) -> str:
    """Say when a keep-alive ends, as ``ollama ps`` does (v0.33, format/time.go)."""
    if left_s <= 0:
        # A model that answers keeps the time from before, which may be over.
        return "Stopping..." if left_s == 0 else "Forever"
    minutes, hours = int(left_s / 60), round(left_s / 3600)
    if left_s < 1:
        words = "Less than a second"
    elif left_s < 2:
        words = "1 second"
    elif minutes < 1:
        words = f"{int(left_s)} seconds"
    elif minutes == 1:
        words = "About a minute"
    elif minutes < 60:
        words = f"{minutes} minutes"
    elif hours == 1:
        words = "About an hour"
    elif hours < 48:
        words = f"{hours} hours"
    else:
        words = f"{hours // 24} days"
    return f"{words} from now"
