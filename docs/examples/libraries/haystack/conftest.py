import os

import pytest

# Before the import: otherwise Haystack reports how it is used.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"


@pytest.fixture
def generator(ollama_host, ollama_model, ollama_options):
    from haystack_integrations.components.generators.ollama import OllamaChatGenerator

    return OllamaChatGenerator(
        url=ollama_host, model=ollama_model, generation_kwargs=ollama_options
    )
