import pytest
from openai import OpenAI


@pytest.fixture
def client(ollama_openai_base_url):
    # The client insists on a key, and Ollama ignores it.
    with OpenAI(base_url=ollama_openai_base_url, api_key="ollama") as client:
        yield client
