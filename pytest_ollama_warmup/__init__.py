"""Pull and warm Ollama models once per pytest run, before the tests that need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_ollama_warmup.api import preload
    from pytest_ollama_warmup.errors import BadSetting
    from pytest_ollama_warmup.session.state import OllamaWarmupWarning

__all__ = ["BadSetting", "OllamaWarmupWarning", "preload"]


def __getattr__(name: str) -> Any:
    # Only what is asked for: scripts need not pay for pytest, nor pytest runs for httpx.
    if name == "OllamaWarmupWarning":
        # For -W and filterwarnings, which look the class up here.
        from pytest_ollama_warmup.session.state import OllamaWarmupWarning

        return OllamaWarmupWarning
    if name == "BadSetting":
        from pytest_ollama_warmup.errors import BadSetting

        return BadSetting
    if name == "preload":
        from pytest_ollama_warmup.api import preload

        return preload
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
