import os

import pytest

# Before the import: otherwise DeepEval reports how it is used.
os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = "1"


@pytest.fixture
def judge(ollama_host, ollama_model, ollama_options):
    from deepeval.models import OllamaModel

    return OllamaModel(model=ollama_model, base_url=ollama_host, generation_kwargs=ollama_options)
