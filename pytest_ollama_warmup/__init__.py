"""Pull and load Ollama models once per pytest run, before the tests that need them.

Public are the names in ``__all__``, the mark, the fixtures, the hooks, the options and the command
line. All other modules and names may change in any release.
"""

from __future__ import annotations

import atexit
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

    from pytest_ollama_warmup.api import preload
    from pytest_ollama_warmup.errors import BadSetting
    from pytest_ollama_warmup.session.models import OllamaModel, OllamaModels
    from pytest_ollama_warmup.session.state import OllamaWarmupWarning
    from pytest_ollama_warmup.warmup.record import Record

__all__ = [
    "BadSetting",
    "OllamaModel",
    "OllamaModels",
    "OllamaWarmupWarning",
    "Record",
    "preload",
]


class _AsWritten:
    """Finds this package's modules before pytest does, which rewrites the asserts of all plugins.

    There are none here. In the first run of an installation, which in CI is each run, that took
    0.3 s and more, and later runs read what was rewritten more slowly than what Python compiles.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path) if name.startswith(f"{__name__}.") else None


def _stop_finding() -> None:
    # The finder refers to the package. Left to the interpreter, which takes modules apart first, it
    # would keep alive all that these refer to: one more garbage collection, 1 % of a short run.
    if _AsWritten in sys.meta_path:
        sys.meta_path.remove(_AsWritten)


if "pytest" in sys.modules:
    sys.meta_path.insert(0, _AsWritten)
    atexit.register(_stop_finding)

# Imported when asked for: scripts need not pay for pytest, nor pytest runs for httpx.
_MODULES = {
    "BadSetting": "errors",
    "OllamaModel": "session.models",
    "OllamaModels": "session.models",
    # -W and filterwarnings look the class up here.
    "OllamaWarmupWarning": "session.state",
    "Record": "warmup.record",
    "preload": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
