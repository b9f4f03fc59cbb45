from functools import partial

import ollama
import pytest


@pytest.fixture
def chat(ollama_host, ollama_model, ollama_options):
    client = ollama.Client(host=ollama_host, timeout=60)
    return partial(client.chat, model=ollama_model, options=ollama_options)
