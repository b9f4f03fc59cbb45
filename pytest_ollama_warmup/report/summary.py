"""What a run shows at its end: the table of its models, how long they took, what was found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TextIO

from pytest_ollama_warmup.report.columns import SIGNS, align, columns
from pytest_ollama_warmup.text import clean, count, first_of, seconds, size, wrapped
from pytest_ollama_warmup.warmup.outcome import NOTICEABLE_S

if TYPE_CHECKING:
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.record import Finding, Record

# A load that takes longer is worth a line of its own, and a table at the end.
LONG_S = 1.0
# The whole message stands above.
BRIEF = 80
ARROWS = ("→", "->")
ALREADY = "already loaded"


def pulled(outcome: Outcome) -> tuple[str, str, str] | None:
    """Return ``pulled 1.3 GB in``, the number and the unit of a pull; None where there was none."""
    if (pull := outcome.step("pull")) is None:
        return None
    # A part that is there within 60 ms is not reported by the server, nor is its size.
    of_size = f"{size(pull.size)} " if pull.size else ""
    return f"pulled {of_size}in ", seconds(pull.seconds), ""


def loaded(outcome: Outcome) -> tuple[str, str, str]:
    """Return in words what was done about the load: ``loaded in``, the number, and notes.

    Of the server its version.
    """
    notes = ", ".join(note for note in outcome.notes if note != ALREADY)
    if not outcome.model:
        return f"Ollama {notes}" if notes else "", "", ""
    load = outcome.step("load")
    if is_already_loaded(outcome):
        return f"{ALREADY}{', ' if notes else ''}{notes}", "", ""
    if load is None:
        return notes or ("present" if outcome.step("pull") is None else ""), "", ""
    return "loaded in ", seconds(load.seconds), f", {notes}" if notes else ""


def is_already_loaded(outcome: Outcome) -> bool:
    """Whether a model was in memory before the run, and not loaded again."""
    if outcome.already_loaded:
        return True
    load = outcome.step("load")
    # A warm-up request for one that is loaded is answered at once.
    return load is not None and outcome.found_loaded and load.seconds < LONG_S


def cost(outcome: Outcome) -> str:
    """Say what a model's steps cost: ``pulled 1.3 GB in 24.1 s, loaded in 2.1 s``."""
    parts = ["".join(words) for words in (pulled(outcome), loaded(outcome)) if words]
    return ", ".join(filter(None, parts))


def is_worth_a_table(record: Record) -> bool:
    """Whether a model was pulled, took a while to load, or is not ready, or a test waited long."""
    if max(record.waits.values(), default=0.0) >= LONG_S:
        return True
    return any(_is_worth_a_row(outcome) for outcome in record.models.values())


def _is_worth_a_row(outcome: Outcome) -> bool:
    load = outcome.step("load")
    return (
        not outcome.ready
        or outcome.step("pull") is not None
        or (load is not None and load.seconds >= LONG_S)
    )


def rows_of(record: Record, *, only_failed: bool) -> list[str]:
    """Return the keys of the models that have a row in the table, in its order."""
    return [key for key, outcome in record.models.items() if not (only_failed and outcome.ready)]


def summary_lines(
    record: Record, *, only_failed: bool = False, plain: bool = False, width: int = 0
) -> list[str]:
    """Return the table of the models of a run, a row each.

    *plain* keeps to ASCII; *width* is that of the terminal, 0 where there is none.
    """
    keys = rows_of(record, only_failed=only_failed)
    models = {key: record.models[key] for key in keys}
    # Of several hosts each serves some of the tests, nobody knows which before.
    hosts = Counter(outcome.key for outcome in record.models.values())
    numbers = [
        len(record.tests.get(outcome.key, [])) if hosts[outcome.key] == 1 else 0
        for outcome in models.values()
    ]
    tests = align([("", *_counted(number, "test")) for number in numbers])
    pulls = align(
        [(outcome.ready and pulled(outcome)) or ("", "", "") for outcome in models.values()]
    )
    loads = align(
        [
            loaded(outcome) if outcome.ready else (clean(outcome.brief, BRIEF), "", "")
            for outcome in models.values()
        ]
    )
    rows = [
        (SIGNS[plain][not outcome.ready], outcome.title, pull, load, number)
        for outcome, pull, load, number in zip(models.values(), pulls, loads, tests, strict=True)
    ]
    return columns(rows, width)


def _counted(number: int, noun: str) -> tuple[str, str]:
    return (str(number), f" {noun}" if number == 1 else f" {noun}s") if number else ("", "")


def ready_after(record: Record) -> str:
    """Say how long it took until the models were ready, and what went on meanwhile.

    Empty where no test was run, or none has waited for all of them.
    """
    steps = [
        step
        for outcome in record.models.values()
        if outcome.ready and not is_already_loaded(outcome)
        for step in outcome.steps
        if step.start < record.prepared
    ]
    if not steps:
        return ""
    begin, end = min(step.start for step in steps), max(step.start + step.seconds for step in steps)
    if end - begin < NOTICEABLE_S:
        return ""
    waits = [(since, max(0.0, min(end, until) - max(begin, since))) for since, until in record.busy]
    before_s = sum(took for since, took in waits if since < record.clock_started)
    beside_s = end - begin - sum(took for _, took in waits)
    parts = []
    if before_s >= NOTICEABLE_S:
        parts.append(f"{seconds(before_s)} of it before pytest's clock started")
    if beside_s >= NOTICEABLE_S:
        what = "while collecting" if parts else "while pytest started and collected"
        of_it = end - begin - beside_s >= NOTICEABLE_S
        parts.append(f"{seconds(beside_s)} {'' if parts else 'of it '}{what}" if of_it else what)
    if len(steps) == 1 and not parts:
        # As its row says.
        return ""
    return ", ".join([f"ready after {seconds(end - begin)}", *parts])


def waited_line(record: Record) -> str:
    """Say how long tests waited, each before its own beginning; empty where none did."""
    if not (waits := record.waits):
        return ""
    test = max(waits, key=waits.__getitem__)
    took, which = seconds(waits[test]), clean(test, 200)
    if len(waits) == 1:
        return f"{which} waited {took} for models (not counted in the test's duration)"
    return (
        f"{count(len(waits), 'test')} waited for models (not counted in their durations), "
        f"{which} longest: {took}"
    )


def lost_lines(record: Record) -> list[str]:
    """Say which servers and models were lost during the run."""
    return [f"lost before {first_of(tests)}: {error}" for error, tests in record.lost.items()]


def finding_lines(finding: Finding, *, plain: bool = False, width: int = 0) -> list[str]:
    """Return the lines of a finding: what was seen and, behind an arrow, how to avoid it."""
    lines = wrapped(f"! {finding.text}", width, 2)
    cure = f"  {ARROWS[plain]} {finding.cure}"
    return lines + (wrapped(cure, width, 4) if finding.cure else [])


def can_write_signs(file: TextIO) -> bool:
    """Whether *file* takes the signs of the table."""
    try:
        "✓✗".encode(file.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
