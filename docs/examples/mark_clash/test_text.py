import pytest


@pytest.mark.requires_model("en_core_web_sm")
def test_entities():
    import spacy

    assert spacy.load("en_core_web_sm")("Ada Lovelace").ents


@pytest.mark.requires_ollama_model("llama3.2:1b")
def test_summary(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Summarize: green tea").response
