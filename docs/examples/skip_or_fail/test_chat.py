import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.requires_model("llama3.1:70b", on_unavailable="skip")
def test_long_essay(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Write an essay about tea.").response
