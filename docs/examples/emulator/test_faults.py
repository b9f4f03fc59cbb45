import httpx
import ollama
import pytest
from chat import MODEL, ask


def test_a_busy_server_is_asked_again(ollama_emulator):
    ollama_emulator.model(MODEL, answer="Paris")
    ollama_emulator.fail(503, times=2)
    assert ask("What is the capital of France?") == "Paris"
    assert len(ollama_emulator.calls("chat")) == 3


def test_an_error_that_does_not_pass_is_raised(ollama_emulator):
    ollama_emulator.model(MODEL)
    ollama_emulator.fail(500, times=None, message="llama-server process has terminated")
    with pytest.raises(ollama.ResponseError, match="has terminated"):
        ask("Hi")
    assert len(ollama_emulator.calls("chat")) == 1


def test_an_answer_that_breaks_off_is_asked_for_again(ollama_emulator):
    ollama_emulator.model(MODEL, answer="The capital is Paris.")
    ollama_emulator.cut(after=2)
    assert ask("What is the capital of France?") == "The capital is Paris."
    assert len(ollama_emulator.calls("chat")) == 2


def test_a_connection_that_breaks_each_time_is_an_error(ollama_emulator):
    ollama_emulator.model(MODEL)
    ollama_emulator.cut(times=None)
    with pytest.raises(httpx.RemoteProtocolError):
        ask("Hi", tries=2)
