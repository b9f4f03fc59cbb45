import pytest


@pytest.mark.vcr
@pytest.mark.requires_model("llama3.2:1b")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response
