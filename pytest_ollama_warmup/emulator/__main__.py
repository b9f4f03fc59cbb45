"""``python -m pytest_ollama_warmup.emulator JSON``: serve scripted models."""

from __future__ import annotations

import argparse
import json
import threading
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEYS = {field.name: field.default for field in fields(ScriptedModel)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve models given as JSON until interrupted; prints the URL first."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_ollama_warmup.emulator",
        description="Emulate an Ollama server on 127.0.0.1: print its URL, and serve until Ctrl-C.",
        epilog="Keys of a model: "
        + ", ".join(
            name if default is MISSING else f"{name} ({json.dumps(default)})"
            for name, default in _KEYS.items()
        ),
    )
    parser.add_argument("--port", type=int, default=0, help="Default: a free one.")
    parser.add_argument(
        "models",
        metavar="JSON",
        help='List of models, such as [{"name": "tiny", "present": true, "load_s": 0.5}]. A model '
        "that is not present has to be pulled first.",
    )
    options = parser.parse_args(arguments)
    try:
        emulator = Emulator(_models(options.models), port=options.port)
        emulator.start()
    except (ValueError, TypeError, OSError) as exc:
        parser.error(str(exc))
    try:
        print(emulator.url, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        emulator.stop()


def _models(text: str) -> list[ScriptedModel]:
    """Read a list of models.

    Raises:
        ValueError: it is none; says what is wrong.
    """
    try:
        models: Any = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"expected a JSON list of models: {exc}") from None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ValueError('expected a JSON list of models, such as [{"name": "tiny"}]')
    for model in models:
        if unknown := [name for name in model if name not in _KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r}; keys: {', '.join(_KEYS)}")
        if not isinstance(model.get("name"), str):
            raise ValueError(f"each model needs a name, and {json.dumps(model)} has none")
    return [ScriptedModel(**model) for model in models]


if __name__ == "__main__":
    main()
