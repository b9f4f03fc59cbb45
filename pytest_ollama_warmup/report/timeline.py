"""A run as lanes of bars and a few figures, for all reports that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.text import clean, count, seconds, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Document = Mapping[str, Any]

# A bar that is narrower than such a part of the run cannot be seen beside its neighbour.
FINEST, COARSEST = 600, 60
# How many bars a page may have, so that it stays small and is drawn at once.
BARS = 6000
# What is shorter, a wait or a test, is noise.
WAIT_S = 0.05
# A request for a model that is loaded is answered sooner.
LOADED_S = 1.0
NAME_LIMIT = 120
# Seconds between two times on the axis.
TICKS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0),
)
_DONE = {
    "wait": "waited",
    "pull": "pulled",
    "verify": "verified",
    "load": "loaded",
    "reload": "reloaded",
}


class Bar(NamedTuple):
    """Something that took a while: *start* in seconds since the run began, *words* say it all.

    *kind* is one of wait, pull, verify, load, reload, tests, failed, others; *number* counts what
    was merged into it. *label* is the name of a single test, which a wide bar shows.
    """

    kind: str
    start: float
    seconds: float
    words: str = ""
    number: int = 1
    label: str = ""

    @property
    def end(self) -> float:
        """When it was over."""
        return self.start + self.seconds


class Lane(NamedTuple):
    """The bars of one model or worker, in the order of time."""

    name: str
    kind: str
    bars: list[Bar]


class Figure(NamedTuple):
    """A number with its name, and what explains it."""

    name: str
    value: str
    more: str = ""


class Timeline(NamedTuple):
    """The lanes of a run that took *seconds*, whose first test began at *first_test*."""

    lanes: list[Lane]
    seconds: float
    first_test: float | None


def figures(document: Document) -> list[Figure]:
    """Return what a run is measured by."""
    loads, pulls = loads_of(document), _done(document, "pull")
    tests = served(document)
    waited = [test for test in tests if test["waited_s"] >= WAIT_S]
    total = len(document["tests"]) + sum(
        span["number"] for worker in document["workers"] for span in worker["other_tests"]
    )
    of_all = f"of {total:,} tests" if total > len(tests) else "all tests"
    failed = sum(test["outcome"] == "failed" for test in tests)
    measures = [
        Figure(
            "Waited for models",
            seconds(document["waited_s"]),
            "before the first test",
        ),
        Figure("Loads", str(len(loads)), _in(loads) if loads else "nothing to load"),
        Figure(
            "Pulled",
            size(sum(step["size"] for step in pulls)),
            _in(pulls) if pulls else "nothing was pulled",
        ),
        Figure(
            "Tests served",
            f"{len(tests):,}",
            ", ".join([of_all, *([f"{failed:,} failed"] if failed else [])]),
        ),
        _lost(document, sum(bool(test["cold"]) for test in tests)),
    ]
    if waited:
        longest = max(waited, key=lambda test: float(test["waited_s"]))
        measures.append(
            Figure(
                "Tests that waited",
                f"{len(waited):,}",
                f"longest {seconds(longest['waited_s'])}, before their own time began",
            )
        )
    return measures


def served(document: Document) -> list[Mapping[str, Any]]:
    """Return the tests that ran, with all their models ready."""
    failed = {
        (one["title"], one["host"]) for one in document["models"] if one["status"] == "failed"
    }
    return [
        test
        for test in document["tests"]
        if test["outcome"] != "skipped"
        and failed.isdisjoint((title, test["host"]) for title in test["models"])
    ]


def _lost(document: Document, cold: int) -> Figure:
    """Return the time that reloads took, of which those by tests are known by their number only."""
    reloads, models = _done(document, "reload"), document["models"]
    number = sum(model["reloads_by_tests"] for model in models)
    lost_s = _sum(reloads) + sum(
        model["reloads_by_tests"] * _sum(loads_of({"models": [model]})) for model in models
    )
    words = [
        count(len(reloads), "reload") if reloads or not number else "",
        f"{count(number, 'reload')} by tests" if number else "",
        f"{count(cold, 'test')} met a cold model" if cold else "",
    ]
    # As long as the first load, each.
    about = "≈ " if number and lost_s else ""
    value = f"{about}{seconds(lost_s)}" if lost_s else "unknown" if number else "0 s"
    some = reloads or number or cold
    more = ", ".join(filter(None, words)) if some else "no model was loaded again"
    return Figure("Lost to reloads", value, more)


def timeline(document: Document, finest: int = FINEST) -> Timeline:
    """Return the lanes of a run; what lies closer than a part in *finest* becomes one bar."""
    lanes = [*_model_lanes(document), *_worker_lanes(document)]
    every = [bar for lane in lanes for bar in lane.bars]
    if not every:
        return Timeline([], 0.0, None)
    begin = min(bar.start for bar in every)
    total = max(bar.end for bar in every) - begin
    parts = min(finest, max(COARSEST, BARS // (2 * len(lanes))))
    merged = [
        lane._replace(bars=_merged(lane.bars, begin, total / parts)) for lane in lanes if lane.bars
    ]
    starts = [bar.start for lane in merged if lane.kind == "worker" for bar in lane.bars]
    return Timeline(merged, total, min(starts, default=None))


def _model_lanes(document: Document) -> Iterator[Lane]:
    several = len({model["host"] for model in document["models"]}) > 1
    for server in document["servers"]:
        waits = [step for step in server["steps"] if step["seconds"] >= WAIT_S]
        if waits:
            words = f"waited {{}} for {clean(server['host'], NAME_LIMIT)}"
            yield Lane("server", "server", [_bar(wait, words) for wait in waits])
    for model in document["models"]:
        name = clean(model["title"], NAME_LIMIT)
        if several:
            name = f"{name} at {clean(model['host'].partition('://')[2], NAME_LIMIT)}"
        # A question takes no time that a chart could show.
        steps = [step for step in model["steps"] if step["kind"] != "show"]
        yield Lane(name, "model", [_bar(step, _words(step)) for step in steps])


def _bar(step: Mapping[str, Any], words: str) -> Bar:
    took, kind = seconds(step["seconds"]), "failed" if step["failed"] else step["kind"]
    return Bar(kind, step["start"], step["seconds"], words.replace("{}", took))


def _words(step: Mapping[str, Any]) -> str:
    before = f" before {clean(step['test'], NAME_LIMIT)}" if step.get("test") else ""
    of_size = f" {size(step['size'])}" if step["size"] else ""
    if step["failed"]:
        return f"{step['kind']} failed after {{}}"
    what = _DONE[step["kind"]]
    return f"{what} {{}}{before}" if what == "waited" else f"{what}{of_size} in {{}}{before}"


def _worker_lanes(document: Document) -> Iterator[Lane]:
    by_worker: dict[str, list[Bar]] = {worker["worker"]: [] for worker in document["workers"]}
    for test in document["tests"]:
        bars = by_worker[test["worker"]]
        name = clean(test["test"], NAME_LIMIT)
        if (waited_s := test["waited_s"]) >= WAIT_S:
            words = f"{name} waited {seconds(waited_s)} for its models"
            bars.append(Bar("wait", test["start"] - waited_s, waited_s, words))
        took_s = test["seconds"]
        kind = "tests" if test["outcome"] in ("passed", "skipped") else "failed"
        words = f"{name} {test['outcome'] or 'did not end'}"
        if took_s is not None:
            words += f" in {seconds(took_s)}"
        label = name.rpartition("::")[2]
        bars.append(Bar(kind, test["start"], took_s or 0.0, words, label=label))
    for worker in document["workers"]:
        for span in worker["other_tests"]:
            words = f"{count(span['number'], 'test')} without a model, {seconds(span['seconds'])}"
            bar = Bar("others", span["start"], span["seconds"], words, span["number"])
            by_worker[worker["worker"]].append(bar)
    for worker, bars in by_worker.items():
        yield Lane("tests" if worker == "main" else clean(worker, NAME_LIMIT), "worker", bars)


def _merged(bars: Iterable[Bar], begin: float, least_s: float) -> list[Bar]:
    """Return *bars* from *begin* on; of one kind, small ones that follow each other become one."""
    by_kind: dict[str, list[Bar]] = {}
    for bar in sorted(bars, key=lambda bar: bar.start):
        same = by_kind.setdefault(bar.kind, [])
        bar = bar._replace(start=bar.start - begin)
        last = same[-1] if same else None
        if (
            last is not None
            and bar.start - last.end < least_s
            and bar.seconds < least_s
            and last.seconds < 4 * least_s
        ):
            same[-1] = _both(last, bar)
        else:
            same.append(bar)
    return sorted((bar for same in by_kind.values() for bar in same), key=lambda bar: bar.start)


def _both(bar: Bar, other: Bar) -> Bar:
    number, took_s = bar.number + other.number, max(bar.end, other.end) - bar.start
    what = {
        "tests": f"{count(number, 'test')} with a model",
        "failed": f"{number} failed",
        "others": f"{count(number, 'test')} without a model",
        "wait": f"{number} waits",
    }.get(bar.kind, f"{_DONE.get(bar.kind, bar.kind)} {count(number, 'time')}")
    return Bar(bar.kind, bar.start, took_s, f"{what} within {seconds(took_s)}", number)


def ticks(total_s: float, at_most: int = 8) -> list[float]:
    """Return round times, in seconds, for the axis of a chart that is *total_s* long."""
    if total_s <= 0:
        return [0.0]
    step = next((tick for tick in TICKS if total_s / tick <= at_most), TICKS[-1])
    while total_s / step > at_most:
        step *= 2
    return [index * step for index in range(int(total_s / step) + 1)]


def loads_of(document: Document) -> list[dict[str, Any]]:
    """Return the loads before tests; a request for a model that is loaded is none."""
    return [
        step
        for model in document["models"]
        for step in model["steps"]
        if step["kind"] == "load"
        and not step["failed"]
        and not (model["found_loaded"] and step["seconds"] < LOADED_S)
    ]


def _in(steps: Sequence[Mapping[str, Any]]) -> str:
    return f"in {seconds(_sum(steps))}"


def _done(document: Document, kind: str) -> list[dict[str, Any]]:
    """Return the steps of *kind* that went well."""
    return [
        step
        for model in document["models"]
        for step in model["steps"]
        if step["kind"] == kind and not step["failed"]
    ]


def _sum(steps: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(step["seconds"] for step in steps))
