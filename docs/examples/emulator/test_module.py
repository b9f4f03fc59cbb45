import ollama
import pytest
from chat import MODEL

from pytest_ollama_warmup.emulator import Emulator


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as emulator:
        emulator.model(MODEL, answer="Paris")
        yield emulator


@pytest.mark.parametrize("question", ["Which city?", "Where is the Louvre?"])
def test_answers(emulator, question):
    client = ollama.Client(emulator.url)
    assert client.generate(MODEL, question)["response"] == "Paris"
