import pytest

pytestmark = [pytest.mark.requires_model("llama3.2:1b"), pytest.mark.ollama_keep_order]
HISTORY = []


def test_first_question(ollama_client, ollama_model):
    HISTORY.append({"role": "user", "content": "My name is Ada."})
    HISTORY.append(ollama_client.chat(ollama_model, HISTORY).message)


def test_second_question(ollama_client, ollama_model):
    HISTORY.append({"role": "user", "content": "What is my name?"})
    assert ollama_client.chat(ollama_model, HISTORY).message.content
