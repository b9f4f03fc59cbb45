"""A stand-in Ollama server, for tests and for the demo where no real one can be had.

It speaks HTTP like Ollama v0.33.0 and has no models behind it: what it plays is scripted, how long
it takes is slept, and what it generates says that it is an emulator.
"""

from pytest_ollama_warmup.emulator.http import Request
from pytest_ollama_warmup.emulator.scheduler import Load
from pytest_ollama_warmup.emulator.script import ScriptedModel
from pytest_ollama_warmup.emulator.server import Emulator

__all__ = ["Emulator", "Load", "Request", "ScriptedModel"]
