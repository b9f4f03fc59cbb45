import ollama
import pytest

pytestmark = pytest.mark.requires_model("gemma3:270m")
GREETING = [{"role": "user", "content": "Say hello."}]


def test_client_of_the_plugin(ollama_client, ollama_model, ollama_options):
    reply = ollama_client.chat(ollama_model, GREETING, options=ollama_options)
    assert reply.message.content


def test_client_of_your_own(chat):
    assert chat(messages=GREETING).message.content


def test_module_functions(ollama_model, ollama_options):
    # ollama.chat and the others read OLLAMA_HOST, which the plugin sets.
    assert ollama.chat(ollama_model, GREETING, options=ollama_options).message.content
