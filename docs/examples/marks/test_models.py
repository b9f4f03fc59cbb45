import pytest


@pytest.mark.parametrize("ollama_model", ["llama3.2:1b", "qwen3:0.6b"], indirect=True)
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response


@pytest.mark.parametrize(
    ("model", "language"),
    [
        pytest.param("llama3.2:1b", "en", marks=pytest.mark.requires_model("llama3.2:1b")),
        pytest.param("qwen3:0.6b", "zh", marks=pytest.mark.requires_model("qwen3:0.6b")),
    ],
)
def test_language(ollama_client, model, language):
    assert ollama_client.generate(model, f"Say hello in {language}.").response
