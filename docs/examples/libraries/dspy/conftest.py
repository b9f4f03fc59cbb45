import os

import pytest

# Before the import: otherwise DSPy and LiteLLM download a list of models and prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.fixture
def lm(ollama_host, ollama_model, ollama_options):
    import dspy

    lm = dspy.LM(
        f"ollama_chat/{ollama_model}",
        engine="litellm",
        api_base=ollama_host,
        # Otherwise DSPy answers from its disk cache, and the model is not tested.
        cache=False,
        **ollama_options,
    )
    with dspy.context(lm=lm):
        yield lm
