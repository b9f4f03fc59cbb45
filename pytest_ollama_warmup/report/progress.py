"""What a run shows while models get ready: live lines on a terminal, lines in a log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.report.bars import Bars, Row, lay_out
from pytest_ollama_warmup.report.summary import ARROWS, LONG_S, cost
from pytest_ollama_warmup.text import at, count, seconds, size, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ollama_warmup.warmup.job import Event
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target

# CI services end a job that prints nothing for some minutes, so also a quiet run says something.
PROGRESS_LINE_EVERY_S = 10.0
QUIET_LINE_EVERY_S = 60.0
# A template or a licence is no download to speak of.
WORTH_SAYING = 100_000
SAY_LOADING_AFTER_S = 2.0
BARS_AFTER_S = 0.3
# Above pytest's own header, where nothing is expected.
EARLY_BARS_AFTER_S = 1.0
# Lines after the first stand below the text, not below "ollama:".
INDENT = len("ollama: ")

# Phases that may last for minutes without a word from the server.
_LONG = {
    "loading": "loading",
    "waiting": "waits: another run is pulling it",
    "busy": "waits: the server's queue is full",
    "checking": "checking",
}
# What stands in a row before a pull has a size, and of what is to come.
_DOING = {**_LONG, "pulling": "pulling", "resuming": "pulling", "queued": "queued"}


class Write(Protocol):
    """Writes one line; keywords are pytest's colours."""

    def __call__(self, line: str, **colours: bool) -> None:
        """Write *line*."""


class _Shown:
    """What has been said of one model; *announced* is whether that it is pulled has been."""

    def __init__(self, name: str, since: float) -> None:
        self.name, self.phase = name, ""
        self.first_seen = self.since = since
        self.begin = self.said = 0.0
        self.first: int | None = None
        self.announced = self.was_pulled = False
        self.completed = self.total = 0
        self.rate = self.left_s = 0.0
        self.outcome: Outcome | None = None


class Screen:
    """Says what happens: live lines on a terminal, a line per change of state in a log.

    *verbosity* is pytest's: below 0 only pulls, waits and failures, below -1 only failures.
    *live* is the terminal to draw on; None where there is none. *width* is that of the terminal,
    0 where lines may be of any length. *plain* keeps to ASCII.
    """

    def __init__(
        self,
        write: Write,
        *,
        verbosity: int = 0,
        live: TextIO | None = None,
        width: Callable[[], int] | int = 0,
        coloured: bool = True,
        plain: bool = False,
        clock: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._write, self._verbosity, self._clock = write, verbosity, clock
        self._live_file = live if verbosity >= -1 else None
        self._width = width if callable(width) else lambda: width
        self._coloured, self._plain = coloured, plain
        self._shown: dict[str, _Shown] = {}
        self._bars: Bars | None = None
        self._watched_since: float | None = None
        self._holds = False
        self._ready: list[tuple[str, str]] = []
        self._said: set[str] = set()
        self.several_hosts = False
        """Whether models are shown with their hosts."""
        self.where = ""
        """The address of the server, for the heading of live lines."""

    def say(self, text: str, *, who: str = "", least: int = 0, **colours: bool) -> None:
        """Write what has happened, unless pytest is quieter than *least*.

        The first line of *text* is what has happened, the others are what to do about it. *who*
        stands between them: who is concerned, and how.
        """
        if self._verbosity < least:
            return
        what, *cure = text.split("\n")
        if cure:
            cure[-1] = f"{ARROWS[self._plain]} {cure[-1]}"
        # A log breaks no line; what is foreign may be long.
        width = self._width()
        self._put(wrapped(f"ollama: {what}", width, INDENT), colours)
        for line in filter(None, [who, *cure]):
            self._put(wrapped(f"{' ' * INDENT}{line}", width, INDENT), {})

    def say_once(self, text: str, *, who: str = "", least: int = 0, **colours: bool) -> None:
        """Say what has happened, if it was not said before; see ``say``."""
        if self.is_new(text):
            self.say(text, who=who, least=least, **colours)

    def is_new(self, text: str) -> bool:
        """Whether *text* was not said before; it counts as said then."""
        new = text not in self._said
        self._said.add(text)
        return new

    def say_interrupted(self, waited_for: str, pending: Iterable[Event]) -> None:
        """Say what Ctrl-C has ended: what goes on, or waiting for the server *waited_for*.

        *pending* is what had not been shown yet.
        """
        for event in pending:
            self.tick(event)
        doing = ", ".join(self.under_way) or f"waiting for {waited_for}"
        later = " A pull goes on where it stopped." if "pulling" in doing else ""
        self.say(f"interrupted: {doing}.{later}", least=-2)

    def follow(
        self, events: Iterator[Event | None], is_over: Callable[[], bool] = lambda: False
    ) -> None:
        """Show *events* until they end, or *is_over* says so."""
        with self.watching():
            for event in events:
                self.tick(event)
                if is_over():
                    break

    def _put(self, lines: list[str], colours: dict[str, bool]) -> None:
        for line in lines:
            if self._bars is None:
                self._write(line, **colours)
            else:
                names = [
                    colour for colour in ("red", "yellow", "green", "bold") if colours.get(colour)
                ]
                self._bars.write(line, " ".join(names))

    @property
    def every_s(self) -> float:
        """How often what goes on is said again, in seconds."""
        return PROGRESS_LINE_EVERY_S if self._verbosity >= 0 else QUIET_LINE_EVERY_S

    @property
    def under_way(self) -> list[str]:
        """What is being done to each model now: ``llama3.2:1b pulling``."""
        return [
            f"{model.name} {model.phase}" for model in self._shown.values() if model.phase != "done"
        ]

    @contextmanager
    def before_header(self) -> Iterator[None]:
        """Say only what takes a while: pytest has not written its own header yet."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Draw what happens meanwhile and takes a moment, where there is a terminal.

        At the end it is said in one line which models have become ready.
        """
        self._watched_since = self._clock()
        try:
            yield
        finally:
            self._watched_since = None
            if self._bars is not None:
                self._bars.end()
                self._bars = None
        if not self._holds:
            self._say_ready()

    def tick(self, event: Event | None) -> None:
        """Show *event*, or (with None) that time passes."""
        if event is not None:
            self._change(event)
        now = self._clock()
        if self._bars is None and self._bars_are_due(now):
            assert self._live_file is not None
            self._bars = Bars(self._live_file, self._room(), coloured=self._coloured)
        for model in self._shown.values():
            if now - model.since >= SAY_LOADING_AFTER_S:
                self._say_what_takes_long(model, now)
        if self._bars is not None:
            self._bars.draw(self._lines(now), self._room())

    def _room(self) -> int:
        # For the ^C that a terminal echoes: a line that wraps could not be taken away.
        return max(self._width() - 4, 20)

    def _bars_are_due(self, now: float) -> bool:
        # rich takes 80 ms to import: not for what is over before anybody could read it.
        since, after_s = self._watched_since, EARLY_BARS_AFTER_S if self._holds else BARS_AFTER_S
        if self._live_file is None or since is None:
            return False
        return now - since >= after_s and bool(self.under_way)

    def _lines(self, now: float) -> list[list[tuple[str, str]]]:
        number = count(len(self._shown), "model")
        heading = f"ollama: preloading {number}{f' on {self.where}' if self.where else ''}"
        rows = [self._row(model, now) for model in self._shown.values()]
        return lay_out(heading, rows, self._room(), plain=self._plain, coloured=self._coloured)

    def _row(self, model: _Shown, now: float) -> Row:
        if model.outcome is not None:
            outcome = model.outcome
            words = cost(outcome) if outcome.ready else outcome.brief
            return Row(model.name, words, ready=outcome.ready)
        if model.phase == "pulling" and model.total:
            return Row(model.name, "", model.completed, model.total, model.rate, model.left_s)
        return Row(model.name, f"{_DOING.get(model.phase, 'queued')}, {now - model.since:.0f} s")

    @property
    def _is_drawing(self) -> bool:
        """Whether what goes on is drawn, or will be when it takes a moment."""
        return self._live_file is not None and self._watched_since is not None

    def _say_what_takes_long(self, model: _Shown, now: float) -> None:
        if self._is_drawing:
            return
        if model.phase == "loading" and not model.said:
            model.said = now
            if model.was_pulled:
                self.say(f"{model.name} pulled, loading", least=-1)
            else:
                self.say(f"{model.name} loading")
        elif model.phase in _LONG and now - model.said >= self.every_s:
            model.said = now
            if (took_s := now - model.since) >= self.every_s:
                self.say(f"{model.name} {_LONG[model.phase]}, {took_s:.0f} s", least=-1)
        elif model.phase == "pulling" and not model.announced:
            model.announced = True
            self.say(f"{model.name} pulling, the registry has not answered yet", least=-1)

    def _change(self, event: Event) -> None:
        now, target = self._clock(), event.target
        if event.phase == "server":
            self.say(event.why, least=-1)
            return
        model = self._shown.setdefault(target.id, _Shown(self._name(target), now))
        if event.phase != model.phase:
            before = model.phase
            model.phase, model.since, model.said = event.phase, now, 0.0
            model.outcome = event.outcome
            if event.phase == "pulling":
                model.begin, model.said = model.begin or now, now
            elif event.phase == "resuming":
                self.say(f"{model.name} pulling: {event.why}", least=-1)
            elif event.phase == "outdated":
                model.begin = 0.0
                # A warning, and none of pytest's: where those are errors, the old one could not
                # be used.
                self.say(f"{model.name} {event.why}", least=-2, yellow=True)
            elif event.phase == "present" and event.why:
                model.begin = 0.0
                self.say(f"{model.name} {event.why}", least=-1)
            elif event.phase == "loading" and before == "present":
                model.was_pulled = bool(model.begin)
            elif event.phase in ("waiting", "busy") and not self._is_drawing:
                self.say(f"{model.name} {_LONG[event.phase]}", least=-1)
            elif (
                event.outcome is not None
                and event.outcome.ready
                # One that is only there waits for its turn: that is nothing to report.
                and (not event.only_pulled or event.outcome.steps)
            ):
                self._became_ready(model, event.outcome, now)
        if event.phase == "pulling" and event.total:
            self._pulling(model, event, now)

    def _name(self, target: Target) -> str:
        return at(target.spec.title, target.host if self.several_hosts else "")

    def _became_ready(self, model: _Shown, outcome: Outcome, now: float) -> None:
        self._ready.append((model.name, cost(outcome)))
        # In a log at once, where it has taken a while; else with the others.
        if not self._is_drawing and (now - model.first_seen >= LONG_S or model.announced):
            self._say_ready()

    def _say_ready(self) -> None:
        """Say in one line which models have become ready since that was last said, by name."""
        by_words: dict[str, list[str]] = {}
        for name, words in sorted(self._ready):
            by_words.setdefault(words, []).append(name)
        self._ready.clear()
        if by_words:
            self.say("; ".join(f"{', '.join(names)} {words}" for words, names in by_words.items()))

    def _pulling(self, model: _Shown, event: Event, now: float) -> None:
        if model.first is None:
            # A pull that goes on where another stopped must not count what was there before.
            model.first = event.completed
        model.completed, model.total = event.completed, event.total
        model.rate = (event.completed - model.first) / max(now - model.begin, 1e-9)
        model.left_s = (event.total - event.completed) / model.rate if model.rate else 0.0
        if not model.announced and event.total >= WORTH_SAYING:
            model.announced = True
            if not self._is_drawing:
                self.say(f"{model.name} pulling {size(event.total)}", least=-1)
        if not self._is_drawing and now - model.said >= PROGRESS_LINE_EVERY_S:
            model.said = now
            left = f", {seconds(model.left_s)} left" if model.rate else ""
            of_size = f"{size(event.completed)} of {size(event.total)}"
            self.say(f"{model.name} pulling {of_size}, {size(model.rate)}/s{left}", least=-1)
