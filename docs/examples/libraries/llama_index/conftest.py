import pytest
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama


@pytest.fixture
def llm(ollama_host, ollama_model, ollama_options):
    return Ollama(
        base_url=ollama_host,
        model=ollama_model,
        # By default, each request asks for the longest context that the model has.
        context_window=ollama_options["num_ctx"],
        additional_kwargs=ollama_options,
        request_timeout=60,
    )


@pytest.fixture
def embedder(ollama_host, ollama_model, ollama_options):
    return OllamaEmbedding(
        base_url=ollama_host,
        model_name=ollama_model,
        ollama_additional_kwargs=ollama_options,
    )
