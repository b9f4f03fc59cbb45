"""Live lines on a terminal: a heading, and a row for each model, as wide as there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TextIO

from pytest_ollama_warmup.text import cut, part_of_size, seconds, shorten, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Group

BAR = 24
BAR_AT_LEAST = 10
# What is kept free for each figure, so that a bar does not change its length as they do.
SIZE, LEFT, RATE = len("999/999 MB"), len("12 min 34 s left"), len("999 MB/s")
# A piece of a line and its style.
Piece = tuple[str, str]


class Row(NamedTuple):
    """What is shown of one model: how far a pull is, or in words what is done or has been done.

    *rate* is in bytes a second, *left_s* in seconds; 0 where they are not known. *ready* is None as
    long as it is open what becomes of the model.
    """

    name: str
    words: str = ""
    completed: int = 0
    total: int = 0
    rate: float = 0.0
    left_s: float = 0.0
    ready: bool | None = None


def lay_out(
    heading: str, rows: Sequence[Row], width: int, *, plain: bool = False, coloured: bool = True
) -> list[list[Piece]]:
    """Return the lines to draw: none is wider than *width*, and a pull always has its bar.

    Where there is little room, the rate goes first, then the time left, then the middle of names.
    """
    names = max(len(row.name) for row in rows)
    name, bar, figures = _share(width - 4, min(names, max(width * 2 // 5, 12)))
    lines: list[list[Piece]] = [[(cut(heading, width), "")]]
    for row in rows:
        begin: list[Piece] = [(f"  {shorten(row.name, name).ljust(name)}  ", "")]
        if row.total and row.ready is None:
            line = [
                *begin,
                *_bar(row.completed / row.total, bar, plain=plain, coloured=coloured),
                (f"  {_figures(row)[figures]}".rstrip(), ""),
            ]
        else:
            sign = {None: "", True: "+ " if plain else "✓ ", False: "x " if plain else "✗ "}
            style = {None: "", True: "green", False: "red"}[row.ready]
            line = [
                *begin,
                (sign[row.ready], style),
                (cut(row.words, width - name - 4 - len(sign[row.ready])), ""),
            ]
        lines.append(line)
    return lines


def _share(width: int, name: int) -> tuple[int, int, int]:
    """Return how long names and bars are in *width*, and how many figures are left out."""
    for left_out, figures in enumerate((SIZE + LEFT + RATE + 4, SIZE + LEFT + 2, SIZE)):
        if (bar := width - name - 2 - figures) >= BAR_AT_LEAST:
            return name, min(bar, BAR), left_out
    bar = BAR_AT_LEAST
    return max(width - 2 - SIZE - bar, 4), bar, 2


def _figures(row: Row) -> tuple[str, str, str]:
    of_size = part_of_size(row.completed, row.total).rjust(SIZE)
    left = f"{seconds(row.left_s)} left" if row.rate else ""
    rate = f"{size(row.rate)}/s".rjust(RATE) if row.rate else ""
    return f"{of_size}  {rate}  {left}", f"{of_size}  {left}", of_size


def _bar(part: float, width: int, *, plain: bool, coloured: bool) -> list[Piece]:
    halves = round(min(max(part, 0.0), 1.0) * width * 2)
    if plain:
        return [(("#" * (halves // 2)).ljust(width, "."), "cyan")]
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    # Without colours the rest would look like the part that is done.
    rest = ("━" if coloured else " ") * (width - len(done))
    return [(done, "cyan"), (rest, "bright_black")]


class Bars:
    """Draws lines over the ones that it has drawn before, and leaves none of them at the end."""

    def __init__(self, file: TextIO, width: int, *, coloured: bool) -> None:
        # Imported here: a run that draws nothing need not pay for it.
        from rich.console import Console
        from rich.live import Live

        self._file = file
        self._console = Console(
            file=file,
            force_terminal=True,
            width=width,
            no_color=not coloured,
            legacy_windows=False,
            highlight=False,
        )
        self._live = Live(
            console=self._console,
            transient=True,
            # The main thread draws; a thread of rich's own would write between pytest's lines.
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def draw(self, lines: Sequence[Sequence[Piece]], width: int) -> None:
        """Draw *lines* on a terminal of *width* columns: it may have another size by now."""
        self._console.width = width
        self._live.update(_texts(lines), refresh=True)

    def write(self, line: str, style: str) -> None:
        """Write *line* above what is drawn, to stay."""
        self._console.print(line, style=style or None, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Take away what is drawn."""
        self._live.stop()
        # The cursor stays where it is, and pytest learns from the line break that a line is over.
        self._file.write("\x1b[1A\n")
        self._file.flush()


def _texts(lines: Sequence[Sequence[Piece]]) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text.assemble(*line, no_wrap=True, overflow="ellipsis") for line in lines))
