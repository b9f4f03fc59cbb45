"""Tables in text: a row each, behind a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.text import cut, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

# By whether the terminal takes ASCII only, and whether something is amiss.
SIGNS = (("✓", "✗"), ("+", "x"))
NAME_AT_LEAST = 12


def columns(rows: Sequence[tuple[str, ...]], width: int = 0) -> list[str]:
    """Return a line for each of *rows*: a sign, a name and more cells, one below the other.

    Where *width* is too small for all of it, names lose their middle, then the last cells go. A
    *width* of 0 is no limit.
    """
    # A column in which nothing stands takes no room.
    shown = [i for i in range(len(rows[0])) if any(row[i] for row in rows)] if rows else []
    cells = [[row[i] for i in shown] for row in rows]
    while width and cells and (over := _length(cells) - width) > 0:
        longest = max(len(row[1]) for row in cells)
        if longest > NAME_AT_LEAST:
            limit = max(longest - over, NAME_AT_LEAST)
            cells = [[row[0], shorten(row[1], limit), *row[2:]] for row in cells]
        elif len(shown) > 3:
            shown.pop()
            cells = [row[:-1] for row in cells]
        else:
            break
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.ljust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
        line = f"{row[0]} {'   '.join(padded)}".rstrip()
        lines.append(cut(line, width) if width else line)
    return lines


def _length(cells: list[list[str]]) -> int:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return 2 + sum(widths[1:]) + 3 * (len(widths) - 2)


def align(pairs: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return each text before, number and text after as one cell, the numbers flush right.

    A pair without a number is the text before, as it is.
    """
    width = max((len(number) for _, number, _ in pairs), default=0)
    return [
        f"{before}{number.rjust(width)}{after}" if number else before
        for before, number, after in pairs
    ]
