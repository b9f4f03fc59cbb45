"""Measure downloads through the plugin against the bare API calls, on a real server and registry.

Run as ``python benchmarks/pulls.py [--rounds N] [--only throttled|stalls|four]``, in the
environment of ``benchmarks/run.py``. It takes minutes: the stalls are as long as real ones.
Timing never decides: the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.run import show
from benchmarks.suites import Done, Suites
from tests.live.provide import Provided, provide
from tests.live.registry import Faults, Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Bytes per second.
RATE = 10e6
STALL_AFTER = 10_000_000
# The bare call never ends where each connection stalls: the server's retry begins anew.
GIVEN_UP_S = 100.0
FOUR = ("completion", "completion-b", "completion-c", "completion-d")

Requests = list[tuple[str, dict[str, object]]]


def throttled(parts: Provided, rounds: int) -> Iterator[list[str]]:
    """One model of 35 MB, at a steady rate."""
    with Registry(parts.models, rate=RATE) as registry:
        a, b = _in_turn(
            rounds,
            lambda: _plugin(parts, [registry.name("big")], "--ollama-warm=off"),
            lambda: _bare(parts, [_pull(registry.name("big"))]),
        )
        yield _row("35 MB at 10 MB/s", a, b, target=1.02)


def stalls(parts: Provided, rounds: int) -> Iterator[list[str]]:
    """The same, from a registry whose connections stall for good after 10 MB each."""
    with Registry(parts.models, rate=RATE) as registry:
        registry.faults = Faults(stall_after=STALL_AFTER)
        big = registry.name("big")
        off = "--ollama-warm=off"
        quick, usual, b = _in_turn(
            rounds,
            lambda: _plugin(parts, [big], off, "-o", "ollama_stall=5"),
            lambda: _plugin(parts, [big], off),
            lambda: _bare(parts, [_pull(big)]),
            warm_up=False,
        )
        yield _row("35 MB, a stall each 10 MB", usual, b)
        yield _row("the same, ollama_stall=5", quick, b)


def four(parts: Provided, rounds: int) -> Iterator[list[str]]:
    """Four models of 1.7 MB, pulled and loaded."""
    for what, each, together in (
        ("four of 1.7 MB, 0.5 MB/s for each", 0.5e6, None),
        ("four of 1.7 MB, 2 MB/s for all", None, 2e6),
    ):
        with Registry(parts.models, rate=together) as registry:
            registry.rate_each = each
            names = [registry.name(model) for model in FOUR]
            bare = [one for name in names for one in (_pull(name), _load(name))]
            a, b = _in_turn(rounds, partial(_plugin, parts, names), partial(_bare, parts, bare))
            yield _row(what, a, b)


def _pull(name: str) -> tuple[str, dict[str, object]]:
    return "/api/pull", {"model": name, "insecure": True}


def _load(name: str) -> tuple[str, dict[str, object]]:
    options = {"num_predict": 5, "temperature": 0.1}
    return "/api/generate", {"model": name, "prompt": "Hi", "stream": False, "options": options}


def _plugin(parts: Provided, names: list[str], *args: str) -> Done:
    """Bring models to an empty server in a run of pytest."""
    listed = " ".join(f"{name},insecure=true" for name in names)
    with RealServer(parts.ollama) as server, tempfile.TemporaryDirectory() as folder:
        return Suites(Path(folder)).pytest(
            "-p", "clock", "one.py", "--ollama-preload", listed, *args, OLLAMA_HOST=server.url
        )


def _bare(parts: Provided, requests: Requests) -> Done:
    """Send requests one after the other to an empty server."""
    given = json.dumps({"requests": requests, "limit_s": GIVEN_UP_S})
    with RealServer(parts.ollama) as server, tempfile.TemporaryDirectory() as folder:
        return Suites(Path(folder)).python("bare.py", given=given, OLLAMA_HOST=server.url)


def _in_turn(rounds: int, *sides: Callable[[], Done], warm_up: bool = True) -> list[list[Done]]:
    """Run *sides* in turns; a warm-up, which fills caches, does not count."""
    turns = [[side() for side in sides] for _ in range(rounds + warm_up)]
    return [list(side) for side in zip(*turns[warm_up:], strict=True)]


def _row(what: str, a: list[Done], b: list[Done], target: float | None = None) -> list[str]:
    """Compare the time inside the plugin's steps with that of the bare calls."""
    with_it, without = ([sum(one.of("spent")) for one in side] for side in (a, b))
    ratio = median(one / other for one, other in zip(with_it, without, strict=True))
    never = any(one.of("gave-up") for one in b)
    return [
        what,
        f"{median(with_it):.2f} s",
        f"not done after {GIVEN_UP_S:.0f} s" if never else f"{median(without):.2f} s",
        f"< {ratio:.2f}" if never else f"{ratio:.3f}",
        "" if target is None else f"A <= {target:.2f} x B",
        "over" if target is not None and ratio > target else "",
    ]


def main() -> None:
    """Measure, and print the table."""
    kinds = {"throttled": throttled, "stalls": stalls, "four": four}
    parser = argparse.ArgumentParser(description="Measure downloads through the plugin.")
    parser.add_argument("--rounds", type=int, default=5, help="Of each comparison (default: 5)")
    parser.add_argument("--only", choices=kinds, help="One part of the table")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("at least one round is needed")
    parts = provide()
    rows: list[list[str]] = []
    for kind in [args.only] if args.only else kinds:
        print(f"measuring: {kind}", file=sys.stderr, flush=True)
        rows += kinds[kind](parts, args.rounds)
    show(["what", "A: plugin", "B: bare calls", "A / B", "target", ""], rows)


if __name__ == "__main__":
    main()
