import pytest


@pytest.mark.requires_model
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response
