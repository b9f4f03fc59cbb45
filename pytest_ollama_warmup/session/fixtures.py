"""What tests ask for; what it is made of is imported by the first test that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.session.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    import ollama

    from pytest_ollama_warmup.emulator import Emulator
    from pytest_ollama_warmup.session.models import OllamaModels

_ENDING = {"Connection": "close"}
_CLIENTS = ("ollama_client", "ollama_async_client")


@pytest.fixture(scope="session")
def ollama_host(pytestconfig: pytest.Config) -> str:
    """URL of the Ollama server of this run (of this worker), such as ``http://127.0.0.1:11434``.

    It includes the user and password of the address, if there are any. Tracebacks don't show them.

    To give some tests another server, define a session fixture of this name in their conftest. The
    plugin loads their models on that server when the first of them runs.
    """
    from pytest_ollama_warmup.errors import BadHost

    settings = settings_of(pytestconfig)
    if isinstance(settings.problem, BadHost):
        # Not the usual address in place of it.
        pytest.fail(str(settings.problem), pytrace=False)
    return settings.host.address


@pytest.fixture(scope="session")
def ollama_openai_base_url(ollama_host: str) -> str:
    """Base URL for OpenAI clients: ``ollama_host`` with ``/v1``."""
    from pytest_ollama_warmup.text import Address

    url = f"{ollama_host}/v1"
    return Address(url) if isinstance(ollama_host, Address) else url


@pytest.fixture
def ollama_model(request: pytest.FixtureRequest, ollama_host: str) -> str:
    """Name of the test's model: the first one of its mark, otherwise the only listed one.

    The model is loaded. A session fixture can't use this fixture, which belongs to one test; it
    uses ``ollama_models.default.name``.
    """
    from pytest_ollama_warmup.session.models import spec_of

    return spec_of(request, ollama_host).name


@pytest.fixture
def ollama_options(request: pytest.FixtureRequest, ollama_host: str) -> dict[str, Any]:
    """Runner options of the test's model, as a dict such as ``{"num_ctx": 8192}``.

    Send them with each request: the server reloads a model for a request with other options.
    """
    from pytest_ollama_warmup.session.models import spec_of

    return dict(spec_of(request, ollama_host).options)


@pytest.fixture(scope="session")
def ollama_models(request: pytest.FixtureRequest, ollama_host: str) -> OllamaModels:
    """Models by alias or name: ``ollama_models["chat"].name``.

    Looking up a model pulls and loads it, also in session fixtures and async tests. A model has
    ``name``, ``options``, ``digest``, ``size`` and ``capabilities``. ``ollama_models.default`` is
    the first listed model.
    """
    from pytest_ollama_warmup.session.models import OllamaModels

    return OllamaModels(request.session, ollama_host)


@pytest.fixture(scope="session")
def ollama_client(pytestconfig: pytest.Config, ollama_host: str) -> Iterator[ollama.Client]:
    """The official client, an ``ollama.Client`` for ``ollama_host``.

    It needs ``pip install pytest-ollama-warmup[client]``, and sends the login of the address and
    the headers of ``--ollama-header``.
    """
    library = _official_library("ollama_client")
    # Before 0.6.2 it cannot be closed.
    closable = hasattr(library.Client, "close")
    headers = {} if closable else _ENDING
    connection = _connection(pytestconfig, ollama_host)
    client = library.Client(ollama_host, headers=headers, **connection)
    yield client
    if closable:
        client.close()


@pytest.fixture
def ollama_async_client(pytestconfig: pytest.Config, ollama_host: str) -> ollama.AsyncClient:
    """The official client for async tests, an ``ollama.AsyncClient``, under any event loop.

    Each connection is closed after its request, so none stays open. If you leave a stream early,
    use ``contextlib.aclosing``.
    """
    library = _official_library("ollama_async_client")
    # The loop of the test is closed when a fixture without one could close the client: each
    # connection ends with its request instead.
    client: ollama.AsyncClient = library.AsyncClient(
        ollama_host, headers=_ENDING, **_connection(pytestconfig, ollama_host)
    )
    return client


@pytest.fixture
def ollama_emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Emulated Ollama for one test, to see how a client copes with a slow or broken server.

    It listens on a free port of 127.0.0.1. Until the test ends, OLLAMA_HOST and the variables of
    --ollama-export name it, and ollama.chat(), ollama_client and ollama_async_client talk to it.
    The test needs no Ollama::

        def test_my_client_retries(ollama_emulator):
            ollama_emulator.model("llama3.2:1b", load_s=2)
            ollama_emulator.fail(503)
            assert my_client.ask("Hi")
            assert len(ollama_emulator.calls("chat")) == 2
    """
    from pytest_ollama_warmup.emulator import Emulator
    from pytest_ollama_warmup.ollama.host import parse_host
    from pytest_ollama_warmup.session.definitions import fixtures_of_the_run

    names = fixtures_of_the_run(request.node)
    if others := [name for name in names if name not in _CLIENTS]:
        pytest.fail(_not_with_emulator(others), pytrace=False)
    # The library's own client reads the address once: not that of an emulator which ends.
    clients = [_client_of_library(), *(request.getfixturevalue(name) for name in names)]
    exports = settings_of(request.config).exports.value
    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        host = parse_host(emulator.url, "ollama_emulator")
        patch.setenv("OLLAMA_HOST", host.as_variable)
        for export in exports:
            patch.setenv(export.name, export.value(host))
        for client in clients:
            if hasattr(http := getattr(client, "_client", None), "base_url"):
                patch.setattr(http, "base_url", emulator.url)
        yield emulator


def _client_of_library() -> object:
    """Return the client behind ``ollama.chat()`` and the like, if the library is there."""
    try:
        import ollama
    except ImportError:
        return None
    return getattr(ollama.chat, "__self__", None)


def _not_with_emulator(others: list[str]) -> str:
    leads = "leads" if len(others) == 1 else "lead"
    return (
        f"{' and '.join(others)} {leads} to the server of this run, not to ollama_emulator. "
        "Use ollama_emulator.url as the address, and the name of a model that you pass to "
        "ollama_emulator.model()."
    )


@pytest.fixture
def _ollama_elsewhere(request: pytest.FixtureRequest, ollama_host: str) -> Iterator[None]:
    """Bring a test's models to the server that the suite's own ollama_host gives it."""
    from pytest_ollama_warmup.session.models import ensure_elsewhere

    with ensure_elsewhere(request.node, ollama_host):
        yield


def _official_library(fixture: str) -> ModuleType:
    from pytest_ollama_warmup.text import explained

    need = "pip install ollama (or pytest-ollama-warmup[client])"
    problem = explained(f"{fixture} needs the official client: {need}", "client-missing")
    try:
        import ollama
    except ImportError:
        pass
    else:
        return ollama
    # Not in the except: pytest would show the import's failure too.
    pytest.fail(problem, pytrace=False)


def _connection(config: pytest.Config, url: str) -> dict[str, Any]:
    from pytest_ollama_warmup.ollama.requests import Headers, own_headers
    from pytest_ollama_warmup.ollama.tls import named_by, trust
    from pytest_ollama_warmup.session.models import host_of

    host = host_of(config, url)
    try:
        verify = trust(host.url)
    except OSError as exc:
        pytest.fail(f"the certificates of {named_by()} cannot be read ({exc})", pytrace=False)
    # A plain address may lead on to one that is not: there the usual certificates count.
    # Like ours, and unlike by default, it does not send loopback addresses to HTTP_PROXY.
    arguments = {"trust_env": not host.loopback, "verify": verify or True}
    # The official client leaves out the user and password of an address.
    own = own_headers(host, settings_of(config).headers.value)
    return {**arguments, "auth": Headers(own)} if own else arguments
