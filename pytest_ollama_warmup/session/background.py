"""Preparing models while tests that need none run: ``--ollama-background``.

A single process starts a child for it. With pytest-xdist threads of the controller, which runs no
tests, do it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_ollama_warmup.report.progress import Screen
    from pytest_ollama_warmup.warmup.job import Event
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.preloader import Preloader


class Background:
    """Hears how the preparation goes: where a test needs a model, at the end, or in a thread.

    *show* draws what happens until all is done, or what it is given says that it is over; *events*
    are the same for whoever must not draw. *answers* says whether it is known that the server
    answers, or does not.
    """

    def __init__(
        self,
        preloader: Preloader,
        screen: Screen,
        terminal: pytest.TerminalReporter | None,
        events: Callable[[], Iterator[Event | None]],
        answers: Callable[[], bool],
    ) -> None:
        self._preloader, self._screen, self._terminal = preloader, screen, terminal
        self._events, self._answers = events, answers
        self._listener: threading.Thread | None = None
        self._listening = threading.Lock()

    def listen(self) -> None:
        """Hear what happens in a thread, while this one serves the workers of pytest-xdist."""
        # A daemon, like those that it listens to.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_for(self, target: Target | None, between_tests: bool) -> None:
        """Wait until a model (None for the server) is no longer being prepared.

        Only *between_tests* the terminal is ours to draw on.
        """
        if target is None:
            self._hear_until(self._answers, shown=between_tests)
        else:
            self._hear_until(lambda: not self._preloader.is_open(target), shown=between_tests)

    def wait_for_all(self, is_over: Callable[[], bool]) -> None:
        """Wait until all is done, or *is_over* says so."""
        if self._listener is None:
            self._hear_until(is_over, shown=True)
        while self._listener and self._listener.is_alive() and not is_over():
            # In slices, so that Ctrl-C is answered at once.
            self._listener.join(0.1)

    def _hear_until(self, is_over: Callable[[], bool], *, shown: bool) -> None:
        if is_over() or not self._preloader.is_busy:
            return
        if not shown:
            for _ in self._events():
                if is_over():
                    break
            return
        if self._terminal is not None and self._terminal.isatty:
            # Bars draw over the line that they begin in.
            self._terminal.ensure_newline()
        self._screen.follow(self._events(), is_over)

    def _listen(self) -> None:
        # One after the other: a second one listens to what begins after collection.
        with self._listening:
            self._screen.follow(self._events())
