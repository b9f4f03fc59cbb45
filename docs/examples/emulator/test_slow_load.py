import httpx
import pytest
from chat import MODEL, ask


def test_the_client_waits_for_a_load(ollama_emulator):
    ollama_emulator.model(MODEL, load_s=1, answer="Paris")
    assert ask("What is the capital of France?") == "Paris"
    assert len(ollama_emulator.loads) == 1


def test_a_short_timeout_gives_up_during_the_load(ollama_emulator):
    ollama_emulator.model(MODEL, load_s=60)
    with pytest.raises(httpx.TimeoutException):
        ask("Hi", timeout_s=0.2)
    assert ollama_emulator.loads == []
