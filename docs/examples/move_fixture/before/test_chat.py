import ollama
from conftest import MODEL


def test_greeting():
    assert ollama.generate(MODEL, "Say hello.").response


def test_prompt_is_short():
    assert len("Say hello.") < 100
