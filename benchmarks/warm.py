"""Measure what each choice of --ollama-warm leaves to the first test.

Run as ``python benchmarks/warm.py [--rounds N] [--ollama PATH]``, in an environment like that of
``tox -e live``; *PATH* is another server's executable than the one that is built for the live
tests. Each round runs two tests that ask gemma-3-270m, cold, once for each choice in turn; a ratio
is the median of the rounds' own ratios against the second test, which is warm in any case.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.live.provide import provide
from tests.live.registry import Registry
from tests.live.server import RealServer

TESTS = """
import json, os, urllib.request
import pytest

def ask(text):
    body = {"model": "gemma:1", "prompt": text, "options": {"num_predict": 8, "seed": 1}}
    url = "http://" + os.environ["OLLAMA_HOST"] + "/api/generate"
    request = urllib.request.Request(url, json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=120).read()

@pytest.mark.requires_model("gemma:1")
@pytest.mark.parametrize("text", ["Name three colours.", "Count from one to three."])
def test_it(text):
    ask(text)
"""
STAMP = """
def pytest_runtest_logreport(report):
    if report.when == "call":
        print(f"\\nTOOK {report.duration}")
"""
CHOICES = {
    "without the plugin": ["--ollama-off"],
    "load": ["--ollama-warm=load"],
    "prompt": ["--ollama-warm=prompt"],
}
LIMIT_S = 300.0


def tests_took(folder: str, server: RealServer, args: list[str]) -> tuple[float, float]:
    """Return the seconds of the first test's body and of the second's, on a cold server."""
    for name in server.loaded():
        server.unload(name)
    plugins = ["-p", "ollama_warmup", "-p", "stamp"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-s", *args],
        cwd=folder,
        env={
            **os.environ,
            "OLLAMA_HOST": f"127.0.0.1:{server.port}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    first, second = (float(line.split()[1]) for line in done.stdout.splitlines() if "TOOK" in line)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description="The first test after each kind of warm-up.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ollama", type=Path, help="Executable of another server")
    given = parser.parse_args()
    parts = provide(gemma=True)
    assert parts.gemma is not None
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CHOICES}
    with (
        Registry(parts.models) as registry,
        RealServer(given.ollama or parts.ollama) as server,
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
    ):
        registry.add("gemma", parts.gemma)
        server.pull(registry.name("gemma"), limit_s=LIMIT_S)
        server.post("/api/copy", {"source": registry.name("gemma"), "destination": "gemma:1"})
        Path(folder, "test_it.py").write_text(TESTS, encoding="utf-8")
        Path(folder, "stamp.py").write_text(STAMP, encoding="utf-8")
        for _ in range(given.rounds):
            for name, args in CHOICES.items():
                found[name].append(tests_took(folder, server, args))
    print(f"| --ollama-warm | first test | second test | ratio, {given.rounds} rounds |")
    print("|---|---|---|---|")
    for name, pairs in found.items():
        first, second = median(a for a, _ in pairs), median(b for _, b in pairs)
        ratio = median(a / b for a, b in pairs)
        print(f"| {name} | {first:.2f} s | {second:.2f} s | {ratio:.2f} |")


if __name__ == "__main__":
    main()
