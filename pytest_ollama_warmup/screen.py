"""pytest's terminal as the screen on which a run shows how its models come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO, cast

from pytest_ollama_warmup.report.terminal import Screen

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

    return Screen(
        write,
        verbosity=config.get_verbosity(),
        live=cast("TextIO", _TerminalFile(config)) if bars and terminal.isatty else None,
        # Room for the ^C that a terminal echoes: a wrapped bar could not be erased.
        width=writer.fullwidth - 4,
        coloured=writer.hasmarkup,
    )
