import pytest

pytestmark = pytest.mark.requires_model("gemma3:270m")
GREETING = [{"role": "user", "content": "Say hello."}]


def test_chat(client, ollama_model):
    reply = client.chat.completions.create(model=ollama_model, messages=GREETING, temperature=0)
    assert reply.choices[0].message.content


def test_streamed(client, ollama_model):
    with client.chat.completions.create(
        model=ollama_model, messages=GREETING, temperature=0, stream=True
    ) as chunks:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_responses(client, ollama_model):
    reply = client.responses.create(model=ollama_model, input="Say hello.", temperature=0)
    assert reply.output_text
