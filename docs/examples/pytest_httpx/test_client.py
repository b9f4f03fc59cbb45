import httpx
import pytest
from ollama import Client


def is_mocked(request):
    return request.url.host == "shop.test"


def test_with_a_mock(httpx_mock):
    httpx_mock.add_response(
        url="http://ollama.test/api/generate", json={"model": "any", "response": "Hello."}
    )
    assert Client("http://ollama.test").generate("any", "Say hello.").response == "Hello."


@pytest.mark.requires_model("llama3.2:1b")
def test_with_a_model(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.httpx_mock(should_mock=is_mocked)
@pytest.mark.requires_model("llama3.2:1b")
def test_with_both(httpx_mock, ollama_client, ollama_model):
    httpx_mock.add_response(url="http://shop.test/tea", json={"price": 3})
    price = httpx.get("http://shop.test/tea").json()["price"]
    assert ollama_client.generate(ollama_model, f"Is {price} a good price for tea?").response
