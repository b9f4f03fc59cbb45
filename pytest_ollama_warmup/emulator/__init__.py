"""An emulated Ollama for tests: scripted models and faults behind Ollama's HTTP API.

It speaks HTTP like Ollama v0.33.0, to which contract tests hold it, and has no models behind it.
The fixture ``ollama_emulator`` starts one for a test; ``Emulator`` is for fixtures of other scopes.
"""

from pytest_ollama_warmup.emulator.emulator import Emulator
from pytest_ollama_warmup.emulator.scheduler import Load
from pytest_ollama_warmup.emulator.script import ScriptedModel
from pytest_ollama_warmup.emulator.state import Request

__all__ = ["Emulator", "Load", "Request", "ScriptedModel"]
