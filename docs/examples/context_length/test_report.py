import pytest

REPORT = "Sales of green tea rose by a tenth. " * 500


@pytest.mark.requires_model("llama3.2:1b")
def test_summary(ollama_client, ollama_model, ollama_options):
    prompt = f"Summarize: {REPORT}"
    reply = ollama_client.generate(ollama_model, prompt, options=ollama_options)
    assert reply.response


@pytest.mark.requires_model("llama3.2:1b")
def test_other_options(ollama_client, ollama_model, ollama_options):
    options = {**ollama_options, "temperature": 0, "num_predict": 20}
    assert ollama_client.generate(ollama_model, "Say hello.", options=options).response
