import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_advice(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Recommend a tea.").response


def test_price():
    assert 3 * 4 == 12


def test_name():
    assert "green tea".title() == "Green Tea"
