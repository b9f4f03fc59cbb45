"""Have the server read the suite's system prompt before the first test, not in it."""

import pytest
from prompt import SYSTEM_PROMPT


@pytest.hookimpl(optionalhook=True)
def pytest_ollama_warmup_request(config, spec):
    """Warm by the very beginning of every conversation that the tests have."""
    return {"messages": [{"role": "system", "content": SYSTEM_PROMPT}]}
