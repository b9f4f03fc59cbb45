"""What tests ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.errors import BadSpec, NoModelNamed
from pytest_ollama_warmup.marks import want_of
from pytest_ollama_warmup.roles import is_looking, run_of, settings_of
from pytest_ollama_warmup.warmup.plan import Want, decide, resolve
from pytest_ollama_warmup.warmup.record import Outcome
from pytest_ollama_warmup.warmup.spec import ModelSpec, parse_specs

if TYPE_CHECKING:
    from pytest_ollama_warmup.run import Run


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
    return _spec_of(request).name


@pytest.fixture
def ollama_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Runner options of the test's model, to send along so that the server need not reload it."""
    return dict(_spec_of(request).options)


@pytest.fixture(scope="session")
def ollama_models(pytestconfig: pytest.Config) -> Models:
    """Models by name or spec: ollama_models["llama3.2:1b"].name; looking one up makes it ready."""
    return _models(pytestconfig)


class Model:
    """A model that is ready."""

    def __init__(self, spec: ModelSpec, outcome: Outcome) -> None:
        self.name = spec.name
        self.options: dict[str, Any] = dict(spec.options)
        self.digest, self.size = outcome.digest, outcome.size
        self.capabilities = outcome.capabilities

    def __repr__(self) -> str:
        return f"<Model {self.name}>"


class Models(Mapping[str, Model]):
    """The run's models; iterates over the names of the listed ones."""

    def __init__(self, run: Run, *, look_up: bool) -> None:
        self._run, self._look_up = run, look_up

    def __getitem__(self, key: str) -> Model:
        """Return the model that *key* names (a name or a spec), ready for use.

        A model that cannot be had skips or fails the test, as --ollama-on-missing says.
        """
        settings = self._run.settings
        try:
            (spec,) = parse_specs(key, "ollama_models[...]")
        except ValueError as exc:
            text = str(exc) if isinstance(exc, BadSpec) else f"one model is needed, not {key!r}"
            raise KeyError(text) from None
        listed = settings.listed.find(spec)
        if listed is not None and not spec.options:
            spec = listed
        if not self._look_up:
            return Model(spec, Outcome(key=spec.key, model=spec.name, status="ready"))
        outcome = self._run.look_up(spec)
        if not outcome.ready:
            given_by = settings.listed.given_by if listed else "default"
            if decide(settings.on_missing.value, "", given_by, settings.ci) == "skip":
                pytest.skip(outcome.error)
            pytest.fail(outcome.error, pytrace=False)
        return Model(spec, outcome)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._run.settings.listed.specs)

    def __len__(self) -> int:
        return len(self._run.settings.listed.specs)


def _models(config: pytest.Config) -> Models:
    run = run_of(config)
    # --setup-only runs fixtures, and must not touch the network.
    return Models(run, look_up=not (run.settings.off or is_looking(config)))


def _spec_of(request: pytest.FixtureRequest) -> ModelSpec:
    listed = settings_of(request.config).listed
    want = want_of(request.node)
    # By request.getfixturevalue() a test can ask without having been seen to at collection.
    seen = want is not None
    if want is None:
        want = Want(test=request.node.nodeid, fixture=request.fixturename or "ollama_model")
    try:
        specs = resolve(want, listed)
    except NoModelNamed as exc:
        pytest.fail(str(exc), pytrace=False)
    if not specs:
        # A bare mark on a test that gets the fixture in the same unforeseen way.
        names = tuple(spec.name for spec in listed.specs)
        problem = NoModelNamed(want.test, request.fixturename or "ollama_model", names)
        pytest.fail(str(problem), pytrace=False)
    if not seen:
        _models(request.config)[str(specs[0])]
    return specs[0]
