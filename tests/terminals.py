"""Run a program in a pseudo-terminal of a size, and read what is on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from typing import TYPE_CHECKING, NamedTuple

from tests import forked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIMIT_S = 60.0
# A control sequence with its number and letter, or one character.
_PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|.", re.DOTALL)
_COLOURS = {"31": "red", "32": "green", "33": "yellow", "36": "cyan"}


class Shown(NamedTuple):
    """What a program wrote to a terminal, how it ended, and the terminal's *columns*."""

    raw: str
    code: int
    columns: int

    @property
    def screen(self) -> list[str]:
        """The lines that a user sees at the end, those that were scrolled away included."""
        return _screen(self.raw, self.columns)

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.screen)

    @property
    def drawn(self) -> list[str]:
        """All lines that were there for a while, without colours, in the order of writing."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", self.raw))
        return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]

    def colour_of(self, text: str) -> str:
        """Return the colour in which *text* was last written; empty for none."""
        before = self.raw[: self.raw.rindex(text)]
        codes = re.findall(r"\x1b\[([0-9;]*)m", before)
        return next((_COLOURS[one] for one in codes[-1].split(";") if one in _COLOURS), "")


def run(
    command: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
    columns: int,
    *,
    resize: tuple[str, int] | None = None,
    limit_s: float = LIMIT_S,
    fresh: bool = False,
) -> Shown:
    """Run ``python -m`` with *command* on a terminal of so many *columns*, for *limit_s* seconds at most.

    With *resize* the terminal gets another width when a text was written, as when a user drags the
    edge of its window.
    """
    main, side = pty.openpty()
    _set_size(side, columns)
    process = forked.start(*command, cwd=cwd, environ=environ, terminal=side, fresh=fresh)
    os.close(side)
    written, deadline = b"", time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(main, 65536)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
        if resize is not None and resize[0].encode() in written:
            columns, resize = resize[1], None
            _set_size(main, columns)
            process.send_signal(signal.SIGWINCH)
            # What is on the screen by then has the old width.
            written += b"\x1b[0Z"
    os.close(main)
    return Shown(written.decode(), process.wait(10), columns)


def _set_size(descriptor: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def _screen(raw: str, columns: int) -> list[str]:
    rows: list[list[str]] = [[]]
    y = x = 0
    for piece in _PIECES.finditer(raw):
        number, letter, char = piece[1], piece[2], piece[0]
        if letter == "A":
            y = max(0, y - int(number or 1))
        elif letter == "K":
            rows[y] = []
        elif letter is None and char == "\r":
            x = 0
        elif letter is None and char == "\n":
            y += 1
        elif letter is None:
            if x >= columns:
                y, x = y + 1, 0
            while len(rows) <= y:
                rows.append([])
            rows[y] += [" "] * (x + 1 - len(rows[y]))
            rows[y][x] = char
            x += 1
        while len(rows) <= y:
            rows.append([])
    return ["".join(row).rstrip() for row in rows]
