"""``python -m pytest_ollama_warmup.emulator JSON``: serve scripted models."""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from typing import TYPE_CHECKING

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve models given as JSON until interrupted; prints the URL first."""
    parser = argparse.ArgumentParser(description="Emulate an Ollama server on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="Default: a free one.")
    parser.add_argument(
        "models", metavar="JSON", help='List of models: [{"name": "tiny", "load_s": 0.5}]'
    )
    given = parser.parse_args(arguments)
    models = [ScriptedModel(**fields) for fields in json.loads(given.models)]
    with Emulator(models, port=given.port) as emulator, contextlib.suppress(KeyboardInterrupt):
        print(emulator.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
