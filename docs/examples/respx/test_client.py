import httpx
import pytest
import respx
from ollama import Client, ResponseError


def summarize(client, model, text):
    try:
        return client.generate(model, f"Summarize: {text}").response
    except ResponseError as error:
        return f"no summary: {error.status_code}"


@respx.mock
def test_a_busy_server():
    respx.post("http://ollama.test/api/generate").mock(return_value=httpx.Response(503))
    assert summarize(Client("http://ollama.test"), "any", "tea") == "no summary: 503"


@pytest.mark.requires_model("llama3.2:1b")
def test_a_real_model(ollama_client, ollama_model):
    assert summarize(ollama_client, ollama_model, "Green tea is brewed at seventy degrees.")
