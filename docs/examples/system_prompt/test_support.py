"""Each question comes after the same long system prompt."""

import pytest
from prompt import SYSTEM_PROMPT


@pytest.mark.parametrize("question", ["Do you ship on Sundays?", "How hot for green tea?"])
def test_support(ollama_client, ollama_model, question):
    """The model has something to say."""
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": question},
    ]
    answer = ollama_client.chat(ollama_model, messages, options={"num_predict": 8})
    assert answer.message.content
