import ollama
import pytest

MODEL = "llama3.2:1b"


@pytest.fixture(scope="session", autouse=True)
def warm_model():
    if MODEL not in [model.model for model in ollama.list().models]:
        ollama.pull(MODEL)
    ollama.generate(MODEL, "Hi", options={"num_predict": 1}, keep_alive="30m")
