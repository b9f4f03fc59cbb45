import ollama
import pytest
from testcontainers.community.ollama import OllamaContainer

MODEL = "llama3.2:1b"


@pytest.fixture(scope="session")
def client():
    with OllamaContainer("ollama/ollama:0.33.0") as container:
        container.pull_model(MODEL)
        yield ollama.Client(container.get_endpoint())
