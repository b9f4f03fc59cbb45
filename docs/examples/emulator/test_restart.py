import httpx
import pytest
from chat import MODEL, ask


def test_the_client_waits_for_a_restart(ollama_emulator):
    ollama_emulator.model(MODEL, answer="Paris")
    assert ask("What is the capital of France?") == "Paris"
    ollama_emulator.restart(down_s=0.5)
    assert ask("What is the capital of France?") == "Paris"
    # A server that was restarted has no model in memory.
    assert len(ollama_emulator.loads) == 2


def test_a_server_that_stays_away_is_an_error(ollama_emulator):
    ollama_emulator.stop()
    with pytest.raises(httpx.ConnectError):
        ask("Hi", tries=2)
