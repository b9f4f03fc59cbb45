import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_short(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.requires_model("qwen3:0.6b")
def test_other_model(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.requires_model("llama3.2:1b")
def test_long(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Write a poem about tea.").response


@pytest.mark.requires_model("qwen3:0.6b")
def test_poem(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Write a poem about tea.").response
