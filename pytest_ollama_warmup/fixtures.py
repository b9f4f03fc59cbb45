"""What tests ask for; what it is made of is imported by the first test that does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.roles import settings_of

if TYPE_CHECKING:
    from pytest_ollama_warmup.models import Models


@pytest.fixture(scope="session")
def ollama_host(pytestconfig: pytest.Config) -> str:
    """URL of the Ollama server of this run, like http://127.0.0.1:11434."""
    return settings_of(pytestconfig).host.url


@pytest.fixture(scope="session")
def ollama_openai_url(ollama_host: str) -> str:
    """Base URL for OpenAI clients: the server's /v1."""
    return f"{ollama_host}/v1"


@pytest.fixture
def ollama_model(request: pytest.FixtureRequest) -> str:
    """Name of the test's model: the first one of its mark, else the only listed one; warm."""
    from pytest_ollama_warmup.models import spec_of

    return spec_of(request).name


@pytest.fixture
def ollama_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Runner options of the test's model, to send along so that the server need not reload it."""
    from pytest_ollama_warmup.models import spec_of

    return dict(spec_of(request).options)


@pytest.fixture(scope="session")
def ollama_models(request: pytest.FixtureRequest) -> Models:
    """Models by name or spec: ollama_models["llama3.2:1b"].name; looking one up makes it ready."""
    from pytest_ollama_warmup.models import Models

    return Models(request.session)
