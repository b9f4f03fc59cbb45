"""What a run says besides its progress: at its beginning, and of what came of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.report.messages import header, hints
from pytest_ollama_warmup.session.cache import previous_digest
from pytest_ollama_warmup.session.state import settings_of, warn
from pytest_ollama_warmup.text import count, explained, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_ollama_warmup.report.messages import Failure
    from pytest_ollama_warmup.report.progress import Screen
    from pytest_ollama_warmup.session.hosts import Hosts
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.record import Record

SERVERS_OWN_STALL_S = 300.0


class News:
    """Says each thing once, on *screen*."""

    def __init__(self, config: pytest.Config, screen: Screen, hosts: Hosts) -> None:
        self._config, self._screen, self._hosts = config, screen, hosts
        self._header_said = False

    def header(self) -> None:
        """Say where the server is, where pytest's own header does not, and what is doubtful."""
        if self._header_said:
            return
        self._header_said = True
        settings = settings_of(self._config)
        # Where models are listed, pytest's own header says it.
        if not settings.up_front:
            if self._config.get_verbosity() > 0:
                self._screen.say_once(header(settings, verbose=True))
            for hint in hints(settings):
                self._screen.say_once(hint)
        limit_s = settings.load_timeout.value
        if limit_s < SERVERS_OWN_STALL_S:
            self.warning(
                explained(
                    f"--ollama-load-timeout is {seconds(limit_s)}, shorter than the "
                    f"{seconds(SERVERS_OWN_STALL_S)} after which the server itself ends a stalled "
                    "load",
                    "short-load-timeout",
                )
            )

    def no_room(self, *, marked: bool) -> None:
        """Say which models are not loaded before the tests, and why.

        *marked* is whether tests say what they need.
        """
        cure = "raise the server's OLLAMA_MAX_LOADED_MODELS."
        if marked:
            cure = f"use --ollama-group-by-model, or {cure}"
        for warmer in self._hosts.in_use:
            where = f"{warmer.host.url}: " if self._hosts.several else ""
            for by, names in warmer.room.displaced.items():
                self._screen.say_once(
                    explained(
                        f"{where}{' and '.join(names)} had to make room for {by}; what is left is "
                        f"loaded when a test uses it. To keep all in memory, {cure}",
                        "not-loaded-yet",
                    ),
                    least=-1,
                )
            for outcome in warmer.directory.outcomes():
                if outcome.left_out:
                    text = explained(
                        f"{where}{outcome.title} is not loaded yet: {outcome.left_out}",
                        "not-loaded-yet",
                    )
                    self._screen.say_once(text, least=-1)

    def changed(self, record: Record) -> None:
        """Say, and record, which models are other ones than in the last run."""
        for key, outcome in record.models.items():
            if before := previous_digest(self._config, outcome):
                record.previous[key] = before
                self._screen.say_once(
                    f"{outcome.model} changed since the last run: {before[:12]} → "
                    f"{outcome.digest[:12]}"
                )

    def unchecked(self, outcome: Outcome) -> None:
        """Say that nobody knows what a model can do of which tests ask something."""
        self._screen.say_once(
            explained(
                f"{outcome.model}: unknown what it can do, as servers before v0.6.4 do not tell; "
                "tests that ask for capabilities run all the same",
                "unknown-capabilities",
            )
        )

    def failure(self, failure: Failure) -> None:
        """Say what is wrong, whom that concerns and how, and what to do; in yellow for skips."""
        colour = {"yellow": True} if failure.skips else {"red": True}
        self._screen.say_once(failure.error, who=failure.who, least=-2, **colour)
        if failure.warning:
            self.warning(failure.warning)

    def problems(self, problems: Sequence[str]) -> None:
        """Say the first of *problems*, and how many there are: each test fails with its own."""
        if problems:
            more = len(problems) - 1
            who = f"so {'does' if more == 1 else 'do'} {count(more, 'more test')}" if more else ""
            self._screen.say_once(problems[0], who=who, least=-2, red=True)

    def warning(self, text: str) -> None:
        """Warn; where warnings are errors, only say it."""
        if self._screen.is_new(text) and not warn(self._config, text):
            self._screen.say(text, least=-1)
