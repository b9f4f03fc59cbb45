import pytest


def weather(city: str) -> str:
    """Return the weather.

    Args:
        city: Name of the city.
    """
    return f"It is raining in {city}."


@pytest.mark.requires_model("qwen3:0.6b", capabilities=["tools"])
def test_weather(ollama_client, ollama_model):
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    reply = ollama_client.chat(ollama_model, messages, tools=[weather]).message
    for call in reply.tool_calls or ():
        assert call.function.name == "weather"
    assert reply.tool_calls or reply.content
