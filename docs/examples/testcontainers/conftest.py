from pathlib import Path

import pytest

# Keeps pulled models between runs. Without it, each run pulls them again.
MODELS = Path.home() / ".cache" / "ollama-in-container"


@pytest.hookimpl(optionalhook=True)
def pytest_ollama_host(config):
    # Before testcontainers 4.15: from testcontainers.ollama import OllamaContainer
    from testcontainers.community.ollama import OllamaContainer

    MODELS.mkdir(parents=True, exist_ok=True)
    container = OllamaContainer("ollama/ollama:0.33.0", ollama_home=MODELS).start()
    config.add_cleanup(container.stop)
    return container.get_endpoint()
