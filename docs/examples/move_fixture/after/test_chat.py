import ollama
import pytest


@pytest.mark.requires_model("chat")
def test_greeting(ollama_model):
    assert ollama.generate(ollama_model, "Say hello.").response


def test_prompt_is_short():
    assert len("Say hello.") < 100
