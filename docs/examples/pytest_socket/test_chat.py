import socket

import pytest


@pytest.mark.requires_model("llama3.2:1b")
def test_with_a_model(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


def test_without_a_model():
    with pytest.raises(RuntimeError):
        socket.create_connection(("127.0.0.1", 80))
