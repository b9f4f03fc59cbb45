import pytest
from pydantic_ai import Agent
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.providers.ollama import OllamaProvider


@pytest.fixture
def agent(ollama_openai_base_url, ollama_model):
    provider = OllamaProvider(base_url=ollama_openai_base_url)
    model = OllamaModel(ollama_model, provider=provider)
    return Agent(model, model_settings={"temperature": 0, "timeout": 60})
