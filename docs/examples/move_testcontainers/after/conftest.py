import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_ollama_host(config):
    from testcontainers.community.ollama import OllamaContainer

    container = OllamaContainer("ollama/ollama:0.33.0").start()
    config.add_cleanup(container.stop)
    return container.get_endpoint()
