import os
from functools import partial

import pytest

# Before the import: otherwise LiteLLM downloads a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.fixture
def complete(ollama_host, ollama_model, ollama_options):
    import litellm

    return partial(
        litellm.completion,
        model=f"ollama_chat/{ollama_model}",
        api_base=ollama_host,
        **ollama_options,
    )
