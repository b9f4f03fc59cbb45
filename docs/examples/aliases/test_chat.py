import pytest


@pytest.mark.requires_model("chat")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.requires_model("embed")
def test_vector(ollama_client, ollama_models):
    assert ollama_client.embed(ollama_models["embed"].name, "green tea").embeddings
