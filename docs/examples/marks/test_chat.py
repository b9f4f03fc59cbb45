import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.requires_model("llama3.2:1b", "nomic-embed-text")
class TestSearch:
    def test_answer(self, ollama_client, ollama_models):
        embed = ollama_models["nomic-embed-text"]
        assert ollama_client.embed(embed.name, "green tea").embeddings

    def test_summary(self, ollama_client, ollama_model):
        # The first model of the mark.
        assert ollama_client.generate(ollama_model, "Summarize: green tea").response


def test_without_a_model():
    assert "tea".title() == "Tea"
