import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings


@pytest.fixture
def llm(ollama_host, ollama_model, ollama_options):
    return ChatOllama(base_url=ollama_host, model=ollama_model, **ollama_options)


@pytest.fixture
def embedder(ollama_host, ollama_model, ollama_options):
    return OllamaEmbeddings(base_url=ollama_host, model=ollama_model, **ollama_options)
