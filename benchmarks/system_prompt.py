"""Measure what the suite's own warm-up request is worth where tests share a long system prompt.

Run as ``python benchmarks/system_prompt.py [--rounds N]``, in an environment like that of
``tox -e live``. Each run has a real server of its own, so that none has read the prompt before.
The two sides take turns; the ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.live.provide import Provided, provide
from tests.live.registry import Registry
from tests.live.server import RealServer

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "system_prompt"
STAMP = """
def pytest_runtest_logreport(report):
    if report.when == "call":
        print(f"\\nANSWERED {report.duration}")
"""
PYTEST = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "stamp", "-s"]
LIMIT_S = 120.0


def first_answer(parts: Provided, *, with_hook: bool) -> float:
    """Return the seconds of the first test's body on a server that has read nothing yet."""
    assert parts.gemma is not None
    with (
        Registry(parts.models) as registry,
        RealServer(parts.ollama) as server,
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
    ):
        registry.add("gemma", parts.gemma)
        server.pull(registry.name("gemma"), limit_s=LIMIT_S)
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        if not with_hook:
            Path(folder, "conftest.py").unlink()
        Path(folder, "stamp.py").write_text(STAMP, encoding="utf-8")
        done = subprocess.run(
            [*PYTEST, f"--ollama-preload={registry.name('gemma')}"],
            cwd=folder,
            env={
                **os.environ,
                "OLLAMA_HOST": server.url,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
    return float(next(line for line in done.stdout.splitlines() if "ANSWERED" in line).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="First answer with the hook against without.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    parts = provide(gemma=True)
    pairs = [
        (first_answer(parts, with_hook=True), first_answer(parts, with_hook=False))
        for _ in range(rounds)
    ]
    hook, without = median(a for a, _ in pairs), median(b for _, b in pairs)
    ratio = median(a / b for a, b in pairs)
    print(f"| first answer, system prompt: with the hook | without | ratio, {rounds} rounds |")
    print("|---|---|---|")
    print(f"| {hook:.2f} s | {without:.2f} s | {ratio:.2f} |")


if __name__ == "__main__":
    main()
