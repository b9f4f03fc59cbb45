import pytest

pytestmark = pytest.mark.requires_model("gemma3:270m")
GREETING = [{"role": "user", "content": "Say hello."}]


def test_chat(complete):
    assert complete(messages=GREETING).choices[0].message.content


def test_streamed(complete):
    chunks = complete(messages=GREETING, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
