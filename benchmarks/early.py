"""Measure whole runs against those without the plugin, and against what suites write by hand.

Run as ``python benchmarks/early.py [--rounds N] [--only chats|imports|loaded] [--workers N]``, in
an environment like that of ``tox -e live``. The sides take turns; a ratio is the median of the
rounds' own ratios. Timing never decides: what misses its goal is marked ``over``, and the exit code
is 0.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.live.provide import provide
from tests.live.registry import Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
LIMIT_S = 300.0
MODEL = "gemma:1"
SLOW = "slow:1b"
WITHOUT, WITH = "nothing", "plugin"
PEERS = (WITHOUT, "fixture", "locked", WITH)
GOALS = {0: 1.04, 2: 0.99, 4: 0.98}
# Imports are work for this process, and hold its lock: a sleep would be too kind.
BUSY = """
import time

end = time.monotonic() + 3.0
while time.monotonic() < end:
    sum(range(1000))
"""
FIVE_TESTS = """
import os, time, urllib.request
import pytest

def ask():
    body = b'{"model": "slow:1b", "prompt": "Hi", "stream": false}'
    url = os.environ["OLLAMA_HOST"] + "/api/generate"
    urllib.request.urlopen(urllib.request.Request(url, body), timeout=60).read()

@pytest.mark.parametrize("number", range(5))
def test_it(number):
    ask()
    time.sleep(0.2)
"""


class Took(NamedTuple):
    """Seconds of a run, and of its slowest test."""

    wall: float
    slowest: float


def run(folder: Path, side: str, model: str, host: str, workers: int = 0) -> Took:
    """Run the suite in *folder*, with the plugin or without it."""
    # As installed: a plugin that is named by -p costs pytest one more search of the environment.
    blocked = {one.name for one in entry_points(group="pytest11")} - {"ollama_warmup", "xdist"}
    if side != WITH:
        blocked.add("ollama_warmup")
    plugins = [word for name in sorted(blocked) for word in ("-p", f"no:{name}")]
    plugins += ["-n", str(workers), *(["--ollama-preload", model] if side == WITH else [])]
    kept = {name: text for name, text in os.environ.items() if _is_plain(name)}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=0", "-vv", *plugins],
        cwd=folder,
        env={**kept, "OLLAMA_HOST": host, "MODEL": model},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )
    wall = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    calls = re.findall(r"([\d.]+)s call", done.stdout)
    return Took(wall, max(map(float, calls), default=0.0))


def cold_run(server: RealServer, folder: Path, side: str, workers: int) -> Took:
    """Run the suite where no model is in memory."""
    for name in server.loaded():
        server.unload(name)
    return run(folder, side, MODEL, _at(server), workers)


def emulated_run(folder: Path, side: str) -> Took:
    """Run the suite on an emulator of its own, whose model takes three seconds to load."""
    with Emulator([ScriptedModel(SLOW, present=True, load_s=3.0)]) as emulator:
        return run(folder, side, SLOW, emulator.url)


def chats(rounds: int) -> None:
    """Twelve chats with a real model that is not loaded, against nothing and two fixtures."""
    print(f"\n{_head(PEERS)} {WITH} / {WITHOUT} | goal |  |")
    print("|---" * (len(PEERS) + 4) + "|")
    with real_server() as server, folders() as of:
        for workers, goal in GOALS.items():
            sides = {
                side: partial(cold_run, server, of[side], side, workers=workers) for side in PEERS
            }
            found = in_turn(rounds, sides)
            _print(f"-n {workers}", found, goal)


def loaded(rounds: int) -> None:
    """The same where the model is in memory already."""
    with real_server() as server, folders() as of:
        server.post("/api/generate", {"model": MODEL, "keep_alive": "1h"})
        sides = {side: partial(run, of[side], side, MODEL, _at(server)) for side in (WITHOUT, WITH)}
        found = in_turn(rounds, sides)
        _print("loaded already, -n 0", found, 1.03)


def imports(rounds: int) -> None:
    """Three seconds of imports, and a model that takes three seconds to load."""
    for what, busy in (("conftest", "conftest.py"), ("test module", "test_it.py")):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
            folder = Path(name)
            files = {"test_it.py": FIVE_TESTS}
            files[busy] = BUSY + files.get(busy, "")
            for file, text in files.items():
                (folder / file).write_text(text, encoding="utf-8")

            sides = {side: partial(emulated_run, folder, side) for side in (WITHOUT, WITH)}
            found = in_turn(rounds, sides)
            _print(f"{what} that imports for 3 s", found, 0.65)


def in_turn(rounds: int, sides: Mapping[str, Callable[[], Took]]) -> dict[str, list[Took]]:
    """Return what each side took, in rounds after one that fills caches."""
    found: dict[str, list[Took]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        # The order changes: what one side leaves behind must not always meet the same other.
        names = list(sides) if number % 2 else list(sides)[::-1]
        for name in names:
            took = sides[name]()
            if number:
                found[name].append(took)
    return found


@contextmanager
def real_server() -> Iterator[RealServer]:
    """Run a server that has gemma-3-270m on its disk."""
    parts = provide(gemma=True)
    assert parts.gemma is not None
    with Registry(parts.models) as registry, RealServer(parts.ollama) as server:
        registry.add("gemma", parts.gemma)
        name = registry.name("gemma")
        server.pull(name, limit_s=LIMIT_S)
        server.post("/api/copy", {"source": name, "destination": MODEL})
        yield server


@contextmanager
def folders() -> Iterator[dict[str, Path]]:
    """Give each side the suite in a folder of its own, with its own conftest and cache."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        found = {side: Path(name, side) for side in PEERS}
        for side, folder in found.items():
            folder.mkdir()
            shutil.copy(HERE / "peers" / "test_chat.py", folder)
            conftest = HERE / "peers" / side / "conftest.py"
            if conftest.exists():
                shutil.copy(conftest, folder)
        yield found


def _at(server: RealServer) -> str:
    return f"127.0.0.1:{server.port}"


def _is_plain(variable: str) -> bool:
    prefixes = ("OLLAMA_", "PYTEST_", "PYTHONDONTWRITE", "COVERAGE_")
    return variable != "CI" and not variable.startswith(prefixes)


def _head(sides: tuple[str, ...]) -> str:
    return f"|  | {' | '.join(sides)} |"


def _print(what: str, found: dict[str, list[Took]], goal: float) -> None:
    cells = []
    for rows in found.values():
        wall, slowest = median(one.wall for one in rows), median(one.slowest for one in rows)
        cells.append(f"{wall:.2f} ({slowest:.2f})")
    pairs = zip(found[WITH], found[WITHOUT], strict=True)
    ratio = median(a.wall / b.wall for a, b in pairs)
    over = "over" if ratio > goal else ""
    print(f"| {what} | {' | '.join(cells)} | {ratio:.3f} | {goal:.2f} | {over} |", flush=True)


PARTS = {"chats": chats, "imports": imports, "loaded": loaded}


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole runs with the plugin, and without it.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--workers", type=int, choices=GOALS, help="of the chats, only these")
    given = parser.parse_args()
    for workers in GOALS.keys() - {given.workers} if given.workers is not None else ():
        del GOALS[workers]
    for name, part in PARTS.items():
        if given.only in (None, name):
            part(given.rounds)


if __name__ == "__main__":
    main()
