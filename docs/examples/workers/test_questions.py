import pytest

QUESTIONS = [f"What is {number} times {number}?" for number in range(8)]


@pytest.mark.requires_model("llama3.2:1b")
@pytest.mark.parametrize("question", QUESTIONS)
def test_answer(ollama_client, ollama_model, question):
    assert ollama_client.generate(ollama_model, question).response
