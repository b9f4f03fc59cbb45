"""Pull and warm Ollama models once per pytest run, before the tests that need them."""

from __future__ import annotations

from typing import Any

__all__ = ["OllamaWarmupWarning"]


def __getattr__(name: str) -> Any:
    # For -W and filterwarnings, which look the class up here; scripts need not pay for pytest.
    if name == "OllamaWarmupWarning":
        from pytest_ollama_warmup.roles import OllamaWarmupWarning

        return OllamaWarmupWarning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
