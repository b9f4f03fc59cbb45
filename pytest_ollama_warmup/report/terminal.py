"""What a run shows: header, progress, summary."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from pytest_ollama_warmup import clock
from pytest_ollama_warmup.report.table import SIGNS, columns
from pytest_ollama_warmup.text import clean, count, first_of, seconds, size
from pytest_ollama_warmup.warmup.record import NOTICEABLE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from pytest_ollama_warmup.warmup.record import Outcome, Record
    from pytest_ollama_warmup.warmup.work import Event

# CI services end a job that prints nothing for some minutes, so also a quiet run says something.
PROGRESS_LINE_EVERY_S = 10.0
QUIET_LINE_EVERY_S = 60.0
# A template or a licence is no download to speak of.
WORTH_SAYING = 100_000
SAY_LOADING_AFTER_S = 2.0
BARS_AFTER_S = 0.3
# The whole message stands above; a table that wraps is none.
BRIEF = 64


# Phases that may last for minutes without a word from the server.
_LONG = {
    "loading": "loading",
    "waiting": "waits: another run is pulling it",
    "busy": "waits: the server's queue is full",
    "checking": "checking",
}


class Write(Protocol):
    """Writes one line; keywords are pytest's colours."""

    def __call__(self, line: str, **colours: bool) -> None:
        """Write *line*."""


def cost(outcome: Outcome, beside_s: float = 0.0) -> str:
    """Say what a model's steps cost: ``pulled 1.3 GB in 24.1 s, loaded in 2.1 s``.

    *beside_s* is how much of the load went by while pytest was busy with itself, in seconds.
    """
    parts = []
    if (pull := outcome.step("pull")) is not None:
        # A part that is there within 60 ms is not reported by the server, nor is its size.
        of_size = f"{size(pull.size)} " if pull.size else ""
        parts.append(f"pulled {of_size}in {seconds(pull.seconds)}")
    if (load := outcome.step("load")) is not None and not outcome.already_loaded:
        beside = ""
        if beside_s >= NOTICEABLE_S:
            part = f", {seconds(beside_s)} of it" if load.seconds - beside_s >= NOTICEABLE_S else ""
            beside = f"{part} while pytest started and collected"
        parts.append(f"loaded in {seconds(load.seconds)}{beside}")
    return ", ".join([*parts, *outcome.notes]) or "present"


def ready_line(name: str, outcome: Outcome) -> str:
    """Say that a model is ready, and what that cost."""
    return f"{name} ready: {cost(outcome)}"


def summary_lines(record: Record, *, only_failed: bool = False, plain: bool = False) -> list[str]:
    """Return the table of the models of a run, a row each; *plain* keeps to ASCII."""
    rows = []
    for key, outcome in record.models.items():
        if only_failed and outcome.ready:
            continue
        # On one of several servers some of them run, nobody knows which before.
        tests = record.tests.get(key, [])
        sign = SIGNS[plain][not outcome.ready]
        if outcome.ready:
            of_tests = count(len(tests), "test") if tests else ""
            load = outcome.step("load")
            beside_s = record.beside_s(load) if load else 0.0
            rows.append((sign, outcome.title, "ready", cost(outcome, beside_s), of_tests))
        else:
            of_tests = first_of(tests) if tests else ""
            rows.append((sign, outcome.title, "failed", clean(outcome.brief, BRIEF), of_tests))
    return columns(rows)


def waited_lines(record: Record) -> list[str]:
    """Say how long tests were held up, before the first one and each before its own beginning."""
    lines = []
    if record.waited_s >= NOTICEABLE_S:
        lines.append(f"waited {seconds(record.waited_s)} before the first test")
    if waits := record.waits:
        test = max(waits, key=waits.__getitem__)
        took, which = seconds(waits[test]), clean(test, 200)
        if len(waits) == 1:
            lines.append(f"{which} waited {took} for models, outside of its own time")
        else:
            tests = count(len(waits), "test")
            lines.append(
                f"{tests} waited for models, outside of their own time: {took} at most ({which})"
            )
    return lines


def lost_lines(record: Record) -> list[str]:
    """Say which servers and models were lost during the run."""
    return [f"lost before {first_of(tests)}: {error}" for error, tests in record.lost.items()]


def can_write_signs(file: TextIO) -> bool:
    """Whether *file* takes the signs of the table."""
    try:
        "✓✗".encode(file.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


class _Shown:
    """What has been said of one model; *announced* is whether that it is pulled has been."""

    def __init__(self, name: str) -> None:
        self.name, self.phase, self.doing = name, "", ""
        self.since = self.begin = self.said = 0.0
        self.first: int | None = None
        self.announced = False
        self.task: TaskID | None = None


class Screen:
    """Says what happens: live bars on a terminal, a line per change of state in a log.

    *verbosity* is pytest's: below 0 only pulls, waits and failures, below -1 only failures.
    *live* is the terminal to draw bars on; None where there is none.
    """

    def __init__(
        self,
        write: Write,
        *,
        verbosity: int = 0,
        live: TextIO | None = None,
        width: int = 80,
        coloured: bool = True,
        clock: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._write, self._verbosity, self._clock = write, verbosity, clock
        self._live_file = live if verbosity >= -1 else None
        self._width, self._coloured = width, coloured
        self._shown: dict[str, _Shown] = {}
        self._progress: Progress | None = None
        self._watched_since: float | None = None

    def say(self, text: str, *, least: int = 0, **colours: bool) -> None:
        """Write one line, unless pytest is quieter than *least*."""
        if self._verbosity < least:
            return
        line = f"ollama: {text}"
        if self._progress is None:
            self._write(line, **colours)
        else:
            style = " ".join(
                name for name in ("red", "yellow", "green", "bold") if colours.get(name)
            )
            self._progress.console.print(
                line, style=style or None, markup=False, highlight=False, soft_wrap=True
            )

    @property
    def every_s(self) -> float:
        """How often what goes on is said again, in seconds."""
        return PROGRESS_LINE_EVERY_S if self._verbosity >= 0 else QUIET_LINE_EVERY_S

    @property
    def under_way(self) -> list[str]:
        """What is being done to each model now: ``llama3.2:1b pulling``."""
        return [f"{one.name} {one.phase}" for one in self._shown.values() if one.phase != "done"]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Draw bars for what happens meanwhile and takes a moment, where there is a terminal."""
        if self._live_file is None:
            yield
            return
        self._watched_since = self._clock()
        for one in self._shown.values():
            one.task = None
        try:
            yield
        finally:
            self._watched_since = None
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def tick(self, event: Event | None) -> None:
        """Show *event*, or (with None) that time passes."""
        if event is not None:
            self._change(event)
        now = self._clock()
        if self._progress is None and self._bars_are_due(now):
            self._begin_bars()
        for one in self._shown.values():
            if now - one.since >= SAY_LOADING_AFTER_S:
                self._say_what_takes_long(one, now)
            if self._progress is not None and one.task is not None:
                doing = one.doing or f"{one.phase}, {now - one.since:.0f} s"
                self._progress.update(one.task, doing=doing)
        if self._progress is not None:
            self._progress.refresh()

    def _bars_are_due(self, now: float) -> bool:
        # rich takes 80 ms to import: not for what is over before anybody could read it.
        since = self._watched_since
        return since is not None and now - since >= BARS_AFTER_S and bool(self.under_way)

    def _begin_bars(self) -> None:
        assert self._live_file is not None
        self._progress = _bars(self._live_file, self._width, self._coloured)
        self._progress.start()
        for one in self._shown.values():
            if one.phase != "done":
                one.task = self._progress.add_task("", name=one.name, doing=one.doing, total=None)

    def _say_what_takes_long(self, one: _Shown, now: float) -> None:
        if one.phase == "loading" and not one.said:
            one.said = now
            if self._progress is None:
                self.say(f"{one.name} loading")
        elif one.phase in _LONG and self._progress is None and now - one.said >= self.every_s:
            one.said = now
            if (took_s := now - one.since) >= self.every_s:
                self.say(f"{one.name} {_LONG[one.phase]}, {took_s:.0f} s", least=-1)
        elif one.phase == "pulling" and not one.announced:
            one.announced = True
            self.say(f"{one.name} pulling, the registry has not answered yet", least=-1)

    def _change(self, event: Event) -> None:
        now, target = self._clock(), event.target
        if event.phase == "server":
            self.say(event.why, least=-1)
            return
        one = self._shown.setdefault(target.id, _Shown(target.title))
        if event.phase != one.phase:
            before, since = one.phase, one.since
            one.phase, one.since, one.said = event.phase, now, 0.0
            one.doing = ""
            if event.phase == "pulling":
                one.begin, one.said = one.begin or now, now
            elif event.phase == "resuming":
                self.say(f"{one.name} pulling: {event.why}", least=-1)
            elif event.phase == "outdated":
                one.begin = 0.0
                # A warning, and none of pytest's: where those are errors, the old one could not
                # be used.
                self.say(f"{one.name} {event.why}", least=-2, yellow=True)
            elif event.phase == "present" and event.why:
                one.begin = 0.0
                self.say(f"{one.name} {event.why}", least=-1)
            elif event.phase == "loading" and before == "present" and one.begin:
                # Said when the load begins: where only a pull is wanted, there is none.
                self.say(f"{one.name} pulled in {seconds(since - one.begin)}, loading", least=-1)
            elif event.phase == "waiting":
                self.say(f"{one.name} waits: another run is pulling it", least=-1)
            elif event.phase == "busy":
                self.say(f"{one.name} waits: the server's queue is full", least=-1)
            elif (
                event.outcome is not None
                and event.outcome.ready
                and (
                    # One that is only there waits for its turn: that is nothing to tell.
                    target.loads or event.outcome.steps
                )
            ):
                self.say(ready_line(one.name, event.outcome))
        if event.phase == "pulling" and event.total:
            if not one.announced and event.total >= WORTH_SAYING:
                one.announced = True
                self.say(f"{one.name} pulling {_announced(event)}", least=-1)
            self._pulling(one, event, now)
        if self._progress is not None:
            self._draw(one, event)

    def _pulling(self, one: _Shown, event: Event, now: float) -> None:
        if one.first is None:
            # A pull that goes on where another stopped must not count what was there before.
            one.first = event.completed
        rate = (event.completed - one.first) / max(now - one.begin, 1e-9)
        left = f", {seconds((event.total - event.completed) / rate)} left" if rate else ""
        one.doing = f"pulling {size(event.completed)} of {size(event.total)}, {size(rate)}/s{left}"
        if self._progress is None and now - one.said >= PROGRESS_LINE_EVERY_S:
            one.said = now
            self.say(f"{one.name} {one.doing}", least=-1)

    def _draw(self, one: _Shown, event: Event) -> None:
        progress = self._progress
        assert progress is not None
        if event.phase == "done":
            if one.task is not None:
                progress.remove_task(one.task)
                one.task = None
            return
        if one.task is None:
            one.task = progress.add_task("", name=one.name, doing="", total=None)
        # Without a total the bar only moves: that of a load is not known.
        progress.update(one.task, total=event.total or None, completed=event.completed)


def _announced(event: Event) -> str:
    if event.free is None:
        return size(event.total)
    short = "only " if event.free < event.total - event.completed else ""
    return f"{size(event.total)}, {short}{size(event.free)} free on the disk"


def _bars(file: TextIO, width: int, coloured: bool) -> Progress:
    # Imported here: a run that shows no bars need not pay for rich.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(
        file=file, force_terminal=True, width=width, no_color=not coloured, legacy_windows=False
    )
    return Progress(
        TextColumn("ollama: {task.fields[name]}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[doing]}", markup=False),
        console=console,
        transient=True,
        # The main thread draws; a thread of rich's own would write between pytest's lines.
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
