"""Twelve short chats, as a suite has them that knows nothing of warm-ups."""

import os

import ollama
import pytest

MODEL = os.environ["MODEL"]
SUBJECTS = "colours rivers tools fruits birds metals planets oceans trees games dances soups"


@pytest.mark.parametrize("subject", SUBJECTS.split())
def test_names_some(subject: str) -> None:
    answer = ollama.chat(
        MODEL,
        [{"role": "user", "content": f"Name three {subject}."}],
        options={"num_predict": 8, "seed": 1},
    )
    assert answer.message.content
