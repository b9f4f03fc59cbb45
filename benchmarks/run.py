"""Measure what the plugin costs, against the same without it, and print one table.

Run as ``python benchmarks/run.py [--rounds N] [--only PART]``, in an
environment with this package and the dependencies of tox's live environment (its group ``live``).
The sides of a comparison take turns; a ratio is the median of the rounds' own ratios.
Timing never decides: a missed target says "over", and the exit code stays 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.suites import Done, Suites
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.live.provide import Missing, provide
from tests.live.registry import Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = 8
# Longer than eight workers take to start on two cores: all wait when the models are ready.
HOLD_S = 2.0
# How long each answer of the pool's hosts takes.
SERVICE_S = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison: the figures of the rounds, *a* with the plugin and *b* without it.

    The target is a ratio or, where *extra* is given, a difference in seconds.
    """

    what: str
    a: list[float]
    b: list[float]
    ratio: float = 0.0
    extra: float | None = None
    counts: bool = False

    def cells(self) -> list[str]:
        """Return what the table shows of it."""
        pairs = list(zip(self.a, self.b, strict=True))
        ratio, more = median(a / b for a, b in pairs), median(a - b for a, b in pairs)
        if self.extra is None:
            over, target = ratio > self.ratio, f"A <= {self.ratio:.2f} x B"
        else:
            over, target = more > self.extra, f"A <= B + {self.extra * 1000:.0f} ms"
        shown = "{:.0f}".format if self.counts else _milliseconds
        figures = (shown(value) for value in (median(self.a), median(self.b), more))
        return [self.what, *figures, f"{ratio:.3f}", target, "over" if over else ""]


def nothing(rounds: int) -> Iterator[Row]:
    """Installed, and wanted by no test."""
    with _folder() as folder:
        suites = Suites(folder)
        for what, file, times in (("1 test", "one.py", 4), ("1000 tests", "many.py", 1)):
            installed, blocked = [file], [file, "-p", "no:ollama_warmup"]
            a, b = _in_turn(
                rounds * times,
                [suites.later(*installed, autoload=True), suites.later(*blocked, autoload=True)],
            )
            yield Row(f"nothing wanted, {what}", _walls(a), _walls(b), 1.02)
            cpu_a, cpu_b = [one.cpu for one in a], [one.cpu for one in b]
            yield Row(f"nothing wanted, {what}, CPU time", cpu_a, cpu_b, 1.02)


def prepare(rounds: int) -> Iterator[Row]:
    """Both steps, imports done before, against their own requests sent again by bare httpx."""
    name = "llama3.2:1b"
    preload = ["--ollama-preload", name]
    absent, present = ScriptedModel(name), ScriptedModel(name, present=True)
    yield _preparing("listed, pulled and loaded", absent, preload, rounds)
    yield _preparing("listed, loaded", present, preload, rounds)
    yield _preparing("by its mark, loaded", present, [], rounds)


def _preparing(what: str, model: ScriptedModel, args: list[str], rounds: int) -> Row:
    sent: list[tuple[str, str, object]] = []

    def ours() -> Done:
        with Emulator([model]) as emulator, _folder() as folder:
            suites = Suites(folder, model.name)
            done = suites.pytest("-p", "clock", "marked.py", *args, OLLAMA_HOST=emulator.url)
            sent[:] = [(one.method, one.path, one.body or None) for one in emulator.requests]
        return done

    def bare() -> Done:
        with Emulator([model]) as emulator, _folder() as folder:
            again = [(method, emulator.url + path, body) for method, path, body in sent]
            return Suites(folder).python("replay.py", given=json.dumps(again))

    a, b = ([sum(one.of("spent")) for one in side] for side in _in_turn(rounds, [ours, bare]))
    return Row(f"prepare: {what}", a, b, extra=0.030)


def cold(rounds: int) -> Iterator[Row]:
    """A real server with a model that is there and not loaded, and a test that asks it.

    The load of one model takes from one to five seconds, as the machine's other work has it: each
    run counts with the median of all loads in place of its own, which the server's log tells.
    The test asks by urllib, so that the import of httpx is on the plugin's account alone.
    """
    try:
        parts = provide(gemma=True)
    except Missing as exc:
        print(f"no cold runs: {exc}")
        return
    assert parts.gemma is not None
    with RealServer(parts.ollama) as server, Registry(parts.models) as registry:
        registry.add("gemma", parts.gemma)
        for what, model in (("tiny", "completion"), ("gemma", "gemma")):
            name = registry.name(model)
            server.pull(name)
            with _folder() as folder:
                yield from _cold(what, name, server, Suites(folder, name), rounds)


def _cold(what: str, name: str, server: RealServer, suites: Suites, rounds: int) -> Iterator[Row]:
    asked = 0

    def run(*args: str, warm: bool = False) -> Done:
        # A prompt that was sent before is answered from the server's cache.
        nonlocal asked
        asked += 1
        if not warm and server.loaded():
            server.unload(name)
        prompt, told = f"{asked} is a number. Say more.", len(server.log_text())
        done = suites.pytest("answers.py", *args, OLLAMA_HOST=server.url, PROMPT=prompt)
        took = re.search(r"llama-server started in ([\d.]+) seconds", server.log_text()[told:])
        return done.stamped("load", float(took[1]) if took else 0.0)

    off, listed, marked, warm = _in_turn(
        rounds,
        [
            lambda: run("--ollama-off"),
            lambda: run("--ollama-preload", name),
            lambda: run(),
            lambda: run("--ollama-off", warm=True),
        ],
    )
    load = median(one.of("load")[0] for side in (off, listed, marked) for one in side)

    def levelled(side: list[Done]) -> list[float]:
        return [one.wall - one.of("load")[0] + load for one in side]

    yield Row(f"cold run, {what}, listed", levelled(listed), levelled(off), 1.05)
    yield Row(f"cold run, {what}, by its mark", levelled(marked), levelled(off), 1.05)
    first, second = ([one.of("answer")[0] for one in side] for side in (listed, warm))
    yield Row(f"its first answer, {what}, against a warm server's", first, second, 1.25)


def workers(rounds: int) -> Iterator[Row]:
    """From ready models to the last worker's first test, against a controller that only slept.

    Both controllers block in the same hook, so the difference is the plugin's, and what xdist
    does to hand out the tests is in both. Ready is when, after the last load, the plugin asks for
    the keep-alive.
    """
    models = [ScriptedModel(name, load_s=HOLD_S / 2) for name in ("one:1b", "two:1b")]
    spread = ["-p", "xdist", "-n", str(WORKERS), "spread.py"]
    pulls: list[float] = []
    loads: list[float] = []

    def ours() -> Done:
        with Emulator(models) as emulator, _folder() as folder:
            done = Suites(folder).pytest(*spread, "--ollama-pull=missing", OLLAMA_HOST=emulator.url)
            pulls.append(len(emulator.pulls))
            loads.append(len(emulator.loads))
            # The last request is for the keep-alive of the model that was loaded last.
            ready = max(one.at for one in emulator.calls("generate"))
            return done.stamped("ready", ready)

    def slept() -> Done:
        with _folder() as folder:
            return Suites(folder).pytest(*spread, "--ollama-off", "-p", "hold", HOLD_S=str(HOLD_S))

    a, b = ([_last_start(one) for one in side] for side in _in_turn(rounds, [ours, slept]))
    yield Row(f"-n {WORKERS}: ready models to last first test", a, b, extra=0.060)
    each = [float(len(models))] * rounds
    yield Row(f"-n {WORKERS}: pulls, against models", pulls[-rounds:], each, 1.0, counts=True)
    yield Row(f"-n {WORKERS}: loads, against models", loads[-rounds:], each, 1.0, counts=True)


def guard(rounds: int) -> Iterator[Row]:
    """The look before each of many tests that do nothing, on a real server, against none."""
    try:
        parts = provide()
    except Missing as exc:
        print(f"no guard: {exc}")
        return
    with RealServer(parts.ollama) as server, Registry(parts.models) as registry:
        name = registry.name("completion")
        server.pull(name)
        with _folder() as folder:
            suites = Suites(folder, name)

            def run(*args: str) -> Done:
                return suites.pytest("guarded.py", *args, OLLAMA_HOST=server.url)

            looks, blind = _in_turn(rounds, [lambda: run(), lambda: run("--ollama-warm=off")])
    a, b = ([_apart(one) for one in side] for side in (looks, blind))
    yield Row("looks around each test, per test", a, b, extra=0.002)


def order(rounds: int) -> Iterator[Row]:
    """What it costs to know what many tests need, and to give them an order of their own."""
    grouped = "--ollama-group-by-model"
    name = "llama3.2:1b"
    with Emulator([ScriptedModel(name, present=True)]) as emulator, _folder() as folder:
        suites = Suites(folder, name)
        what = "10000 tests, 1000 of them marked"
        planned = ["-p", "before_tests", "tenth.py", "--ollama-warm=off"]
        bare = ["-p", "before_tests", "tenth.py", "-p", "no:ollama_warmup"]
        yield _collecting(f"{what}: collected and planned", suites, emulator, planned, bare, rounds)
        planned.append(grouped)
        yield _collecting(f"{what}: the same, grouped", suites, emulator, planned, bare, rounds)
        fast = ["-p", "xdist", "-n2", "fast.py"]
        a, b = _in_turn(
            rounds,
            [suites.later(*fast, grouped), suites.later(*fast, "-p", "no:ollama_warmup")],
        )
    yield Row("-n 2, grouped: 3000 tests without models, as a whole", _walls(a), _walls(b), 1.1)


def _collecting(
    what: str, suites: Suites, emulator: Emulator, planned: list[str], bare: list[str], rounds: int
) -> Row:
    def ours() -> Done:
        before = len(emulator.requests)
        done = suites.pytest(*planned, OLLAMA_HOST=emulator.url)
        # What is said to the server is measured elsewhere, and does not grow with the tests.
        at = [one.at for one in emulator.requests[before:]]
        return done.stamped("spent", at[0] - at[-1])

    a, b = _in_turn(rounds, [ours, suites.later(*bare)])
    spent = [[sum(one.of("spent"), 0.0) for one in side] for side in (a, b)]
    return Row(what, spent[0], spent[1], 1.05)


def grouped(rounds: int) -> Iterator[Row]:
    """Loads on a real server that keeps three of four models which tests need in turn."""
    try:
        parts = provide()
    except Missing as exc:
        print(f"no grouped: {exc}")
        return
    room = {"OLLAMA_MAX_LOADED_MODELS": "3"}
    with RealServer(parts.ollama, env=room) as server, Registry(parts.models) as registry:
        names = [registry.name(f"completion{more}") for more in ("", "-b", "-c", "-d")]
        for name in names:
            server.pull(name)
        each = [float(len(names))] * rounds
        for where, workers in (("one process", []), ("-n 2", ["-p", "xdist", "-n2"])):
            ours = _loads(server, names, ["--ollama-group-by-model", *workers], rounds)
            without = _loads(server, names, ["--ollama-off", *workers], rounds)
            yield Row(f"{where}: loads when grouped, of models", ours, each, 1.0, counts=True)
            yield Row(f"{where}: loads, of those without", ours, without, 1.0, counts=True)


def _loads(server: RealServer, names: list[str], args: list[str], rounds: int) -> list[float]:
    """Return how often models are loaded in each of *rounds* runs, all of them cold before."""
    found = []
    for _ in range(rounds):
        for name in server.loaded():
            server.unload(name)
        before = server.loads()
        with _folder() as folder:
            suites = Suites(folder)
            suites.pytest("turns.py", *args, OLLAMA_HOST=server.url, NAMES=" ".join(names))
        found.append(float(server.loads() - before))
    return found


def overlap(rounds: int) -> Iterator[Row]:
    """Five seconds of preparation beside five seconds of tests, against those tests alone."""
    yield _beside("one process", 1, [], rounds)
    yield _beside("-n 2", 2, ["-p", "xdist", "-n2"], rounds)


def _beside(where: str, processes: int, args: list[str], rounds: int) -> Row:
    model = ScriptedModel("llama3.2:1b", present=True, load_s=5.0)

    def run(how: str) -> Done:
        with Emulator([model]) as emulator, _folder() as folder:
            return Suites(folder, model.name).pytest(
                "beside.py", how, *args, OLLAMA_HOST=emulator.url, PROCESSES=str(processes)
            )

    a, b = _in_turn(rounds, [lambda: run("--ollama-background"), lambda: run("--ollama-off")])
    return Row(f"{where}: 5 s of preparation beside 5 s of tests", _walls(a), _walls(b), 1.1)


def pool(rounds: int) -> Iterator[Row]:
    """A suite of 96 requests of a fixed time each, on hosts that answer one at a time."""
    model = ScriptedModel("llama3.2:1b", present=True, eval_s=SERVICE_S)

    def run(number: int) -> Done:
        with ExitStack() as servers, _folder() as folder:
            hosts = [servers.enter_context(Emulator([model])).url for _ in range(number)]
            return Suites(folder, model.name).pytest(
                "served.py", "-p", "xdist", f"-n{number}", f"--ollama-host={','.join(hosts)}"
            )

    one, two, three = _in_turn(rounds, [lambda: run(1), lambda: run(2), lambda: run(3)])
    for number, side in ((2, two), (3, three)):
        what = f"{number} hosts, -n {number}: the run, against 1 host, -n 1"
        # A tenth of the shorter run for what is not shared out: start, collection, the last test.
        yield Row(what, _walls(side), _walls(one), 1.1 / number)


def _apart(done: Done) -> float:
    """Return the median time from the begin of a test to that of the next."""
    begins = done.of("test")
    return median(after - before for before, after in itertools.pairwise(begins))


def _last_start(done: Done) -> float:
    firsts = {name: min(done.of(name)) for name, _ in done.stamps if name.startswith("gw")}
    if len(firsts) != WORKERS:
        raise RuntimeError(f"{len(firsts)} of {WORKERS} workers ran a test")
    return max(firsts.values()) - done.of("ready")[0]


def _in_turn(rounds: int, sides: list[Callable[[], Done]]) -> list[list[Done]]:
    """Run *sides* in turns; the first, which fills caches, does not count."""
    turns = [[side() for side in sides] for _ in range(rounds + 1)]
    return [list(side) for side in zip(*turns[1:], strict=True)]


def _walls(side: list[Done]) -> list[float]:
    return [one.wall for one in side]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure, and print the table."""
    parts = {
        "nothing": nothing,
        "prepare": prepare,
        "cold": cold,
        "workers": workers,
        "guard": guard,
        "order": order,
        "grouped": grouped,
        "overlap": overlap,
        "pool": pool,
    }
    parser = argparse.ArgumentParser(description="Measure what the plugin costs.")
    parser.add_argument("--rounds", type=int, default=10, help="Of each comparison (default: 10)")
    parser.add_argument("--only", choices=parts, help="One part of the table")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("at least one round is needed")
    chosen = [args.only] if args.only else list(parts)
    rows = []
    for part in chosen:
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        rows += [row.cells() for row in parts[part](args.rounds)]
    show(["what", "A: with", "B: without", "A - B", "A / B", "target", ""], rows)


def show(head: list[str], rows: list[list[str]]) -> None:
    """Print a table as Markdown."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    table.insert(1, ["-" * width for width in widths])
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"| {' | '.join(padded)} |")


if __name__ == "__main__":
    main()
