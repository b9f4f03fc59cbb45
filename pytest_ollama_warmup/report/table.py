"""Tables in text: a row each, behind a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# By whether the terminal takes ASCII only, and whether something is amiss.
SIGNS = (("✓", "✗"), ("+", "x"))


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a line for each of *rows*, a sign and cells, which stand below one another."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"{row[0]} {'   '.join(cells)}".rstrip())
    return lines
