"""``tox -e demo``: run ``ollama-warmup demo``, and if it used the emulator, build a real Ollama.

The demo runs at once on what is there. The second run is on a private server with a toy model.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_ollama_warmup.cli import demo
from pytest_ollama_warmup.cli.main import FAILED, INTERRUPTED, READY
from pytest_ollama_warmup.cli.main import main as ollama_warmup
from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.errors import WarmupError
from tests.live.provide import Missing, print_now, provide
from tests.live.registry import Registry
from tests.live.server import RealServer

TOY = "toy:latest"


def main() -> int:
    """Run the demo, if need be a second time; the exit code is 0 if all tests passed."""
    settings = read_settings(Sources(SimpleNamespace(ollama_warmup_wait="2s"), patient=True))
    if settings.problem is not None:
        raise settings.problem
    with ExitStack() as stack:
        stage = demo.find_stage(stack, settings)
        passed = demo.run_on(stage)
    if not stage.emulated or not passed:
        return READY if passed else FAILED
    print_now(
        "\n== The same on a real Ollama, which is built from source first. This takes 5 to 10 "
        "minutes\n== the first time and seconds after that. Ctrl-C stops it.\n"
    )
    try:
        parts = provide()
    except Missing as exc:
        print_now(f"A real Ollama cannot be built here: {exc}")
        return READY
    with RealServer(parts.ollama) as server, Registry(parts.models) as registry:
        pulled = registry.name("completion")
        server.pull(pulled)
        server.post("/api/copy", {"source": pulled, "destination": TOY})
        server.delete(pulled)
        return ollama_warmup(["demo", "--host", server.url])


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except WarmupError as exc:
        print_now(f"ollama: {exc}")
        code = FAILED
    raise SystemExit(code)
