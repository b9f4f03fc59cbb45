"""pytest's terminal as the screen on which a run shows how its models get ready."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO, cast

from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.report.summary import ARROWS, can_write_signs
from pytest_ollama_warmup.text import wrapped

if TYPE_CHECKING:
    import pytest


class _TerminalFile:
    """pytest's terminal as a file, so that it knows where its cursor stands."""

    def __init__(self, config: pytest.Config) -> None:
        self._writer = config.get_terminal_writer()
        self.encoding = sys.stdout.encoding

    def write(self, text: str) -> int:
        self._writer.write(text, flush=True)
        return len(text)

    def flush(self) -> None:
        self._writer.flush()

    def isatty(self) -> bool:
        return True


def width_of(config: pytest.Config, terminal: pytest.TerminalReporter) -> int:
    """Return how many columns there are now; 0 for a log, whose lines may be of any length."""
    return int(config.get_terminal_writer().fullwidth) if terminal.isatty else 0


def screen_of(
    config: pytest.Config, terminal: pytest.TerminalReporter | None, *, bars: bool = True
) -> Screen:
    """Return a screen on *terminal*, with or without *bars*; without a terminal nothing shows."""
    if terminal is None:
        return Screen(lambda line, **colours: None)
    writer = config.get_terminal_writer()

    def write(line: str, **colours: bool) -> None:
        terminal.ensure_newline()
        # With pytest-xdist it does not know that its dots have begun a line.
        if writer.width_of_current_line:
            writer.line()
        terminal.write_line(line, **colours)
        # A pipe, like that of a CI log, would hold back for minutes what is waited for.
        terminal.flush()

    # On such a terminal the cursor does not go back: a line cannot be drawn over another.
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    draws = bars and terminal.isatty and not dumb
    return Screen(
        write,
        verbosity=config.get_verbosity(),
        live=cast("TextIO", _TerminalFile(config)) if draws else None,
        width=lambda: width_of(config, terminal),
        coloured=writer.hasmarkup,
        plain=not can_write_signs(sys.stdout),
    )


def write_error(config: pytest.Config, texts: list[str], *, at_start: bool) -> None:
    """Write what ends the run, once; its last text is what to do about it.

    Before pytest's session has started that goes to where pytest writes its own usage errors.
    """
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    writer = config.get_terminal_writer()
    file = sys.stderr if at_start or terminal is None else sys.stdout
    width = width_of(config, terminal) if terminal is not None else 0
    arrow = ARROWS[not can_write_signs(file)]
    lines = [
        *wrapped(f"ERROR: ollama: {texts[0]}", width, 0),
        *(line for text in texts[1:-1] for line in wrapped(text, width, 0)),
        *wrapped(f"{arrow} {texts[-1]}", width, 2),
    ]
    if not at_start and terminal is not None:
        terminal.ensure_newline()
        for line in lines:
            terminal.write_line(line, red=True)
        return
    writer.flush()
    coloured = writer.hasmarkup and file.isatty()
    for line in lines:
        text = writer.markup(line, red=True) if coloured else line
        print(text, file=file, flush=True)
