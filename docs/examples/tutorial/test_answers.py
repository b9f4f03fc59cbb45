import pytest

pytestmark = pytest.mark.requires_model("chat")


@pytest.mark.parametrize("question", ["Who are you?", "What is a test?"])
def test_answers(ollama_client, ollama_model, question):
    reply = ollama_client.generate(ollama_model, question)
    assert reply.response
