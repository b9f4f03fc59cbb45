from pathlib import Path

import pytest

IMAGE = Path(__file__).with_name("red.png")


@pytest.mark.requires_model("gemma3:4b", capabilities=["vision"])
def test_colour(ollama_client, ollama_model):
    reply = ollama_client.generate(ollama_model, "Which colour is this?", images=[IMAGE])
    assert reply.response
