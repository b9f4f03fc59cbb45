import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.timeout(120)
@pytest.mark.requires_model("llama3.2:1b")
def test_long_answer(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Write a poem about tea.").response
