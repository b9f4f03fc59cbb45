import httpx
import pytest

pytestmark = pytest.mark.requires_model("llama3.2:1b")


def test_with_the_fixture(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


def test_with_your_own_client(ollama_host, ollama_model):
    body = {"model": ollama_model, "prompt": "Say hello.", "stream": False}
    # httpx takes the user and password from the URL.
    reply = httpx.post(f"{ollama_host}/api/generate", json=body, timeout=60)
    assert reply.raise_for_status().json()["response"]
