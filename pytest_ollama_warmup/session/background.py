"""Prepare models while tests that need none run: ``--ollama-background``.

A single process starts a child for it. With pytest-xdist the controller, which runs no tests, does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_ollama_warmup.session.child import ChildPreparation
from pytest_ollama_warmup.session.state import is_distributing
from pytest_ollama_warmup.session.steps import Controller
from pytest_ollama_warmup.session.terminal import screen_of
from pytest_ollama_warmup.warmup.plan import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from pytest_ollama_warmup.warmup.plan import Target, Verdict, Want
    from pytest_ollama_warmup.warmup.record import Outcome


class Overlapping(Controller):
    """Begins to bring models, and waits for them only where a test needs one, and at the end."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        self._listener: threading.Thread | None = None
        self._listening = threading.Lock()
        self._distributing = is_distributing(config)
        self._holds_up, self._between_tests = False, False
        if self._distributing:
            # pytest writes its dots meanwhile.
            self.screen = screen_of(config, self._terminal, bars=False)
        else:
            self._preparation = ChildPreparation(lambda: self.settings, self.folder)

    def session_start(self) -> None:
        """Step 1: begin."""
        super().session_start()
        self.record.waited_s = 0.0

    def before_tests(self, wants: list[Want], selected: int) -> None:
        """Step 2: begin; in a suite in which any test may need any model, wait for all of it."""
        self._holds_up = not wants
        super().before_tests(wants, selected)
        if not self._holds_up:
            # Tests have begun by then.
            self.record.waited_s = self.record.prepared = 0.0

    def begin(self, targets: Iterable[Target]) -> None:
        """Begin to bring *targets*, beside what this process does next."""
        targets = list(targets)
        if self.settings.serve.value:
            # Only this process can start it.
            self.server()
        self.begin_beside(targets)
        if self._distributing and targets:
            # A worker that is faster would bring one out of its turn, without a word of how far it
            # is, and in the midst of what its tests have mocked.
            self.wait_until_begun(targets)
            # A daemon, like those that it listens to.
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()

    def after_tests(self) -> None:
        """Wait for what no test has waited for, and say what became of it all."""
        if self._plan.marked and not self._holds_up:
            self._holds_up = True
            self._wait_for_all()
            self._conclude()

    def verdict_now(self, want: Want) -> Verdict | None:
        """Return why a test cannot run; shows what it waits for."""
        self._between_tests = True
        try:
            return super().verdict_now(want)
        finally:
            self._between_tests = False

    def outcome(self, target: Target) -> Outcome:
        """Return what became of a model, when that is known."""
        self._hear_until(lambda: not self._preparation.is_open(target.key))
        return super().outcome(target)

    def server(self) -> Outcome:
        """Return whether the server answers, when that is known."""
        if not self._distributing:
            self._hear_until(lambda: self.gate.peek(SERVER) is not None)
        return super().server()

    def _wait_for_listed(self) -> None:
        """Go on at once."""

    def _wait_for_all(self) -> None:
        if not self._holds_up:
            return
        if self._listener is None:
            self._hear_until(self._is_over, shown=True)
        while self._listener and self._listener.is_alive() and not self._is_over():
            # In slices, so that Ctrl-C is answered at once.
            self._listener.join(0.1)

    def _conclude(self) -> None:
        if self._holds_up:
            self.record.server = self.server() if self.sites else self.gate.peek(SERVER)
            self._record_failed_server()
            super()._conclude()

    def _hear_until(self, is_over: Callable[[], bool], *, shown: bool = False) -> None:
        if is_over() or not self._preparation.is_busy:
            return
        if not (shown or self._between_tests):
            # Within a test the terminal is not ours.
            for _ in self.events("done"):
                if is_over():
                    break
            return
        if self._terminal is not None and self._terminal.isatty:
            # Bars draw over the line that they begin in.
            self._terminal.ensure_newline()
        self.wait("done", is_over)

    def _listen(self) -> None:
        # One after the other: a second one listens to what begins after collection.
        with self._listening:
            self.wait("done")
