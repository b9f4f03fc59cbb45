"""A test's models, ready for use: what the fixtures give."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.model_specs import parse_specs
from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.errors import BadHost, BadMark, BadSpec, NoModelNamed
from pytest_ollama_warmup.ollama.names import closest
from pytest_ollama_warmup.session.marks import want_of, wants_of
from pytest_ollama_warmup.session.parameters import parameter_of
from pytest_ollama_warmup.session.replays import is_replayed, needs_no_server_now
from pytest_ollama_warmup.session.runtest import enforce, state_of, watch
from pytest_ollama_warmup.session.state import (
    check_of,
    is_looking,
    settings_of,
    warmers_of,
    warn_unencrypted,
)
from pytest_ollama_warmup.text import explained
from pytest_ollama_warmup.warmup.check import outcome_at_run_time
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import Want, resolve
from pytest_ollama_warmup.warmup.still_loaded import CannotLook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.warmup.warmer import Warmer


class OllamaModel:
    """A model that is ready."""

    def __init__(self, spec: ModelSpec, outcome: Outcome) -> None:
        self.name = spec.name
        self.options: dict[str, Any] = dict(spec.options)
        self.digest, self.size = outcome.digest, outcome.size
        self.capabilities = outcome.capabilities

    def __repr__(self) -> str:
        return f"<OllamaModel {self.name}>"


class OllamaModels:
    """The run's models; iterates over what the listed ones are called: alias, else name."""

    def __init__(self, session: pytest.Session, url: str) -> None:
        self._session, self._warmer = session, _warmer_at(session.config, url)
        # --setup-only runs fixtures, and must not touch the network.
        self._look_up = not (self._warmer.settings.off or is_looking(session.config))
        if self._look_up:
            # Also asked for at run time, by a test that does not say so before.
            watch(session.config)

    def __getitem__(self, key: str) -> OllamaModel:
        """Return the model that *key* names (alias, name or spec), ready for use.

        A model that cannot be had skips or fails the test, as --ollama-on-unavailable says.

        Raises:
            KeyError: *key* names no model, or more than one, or is a slip of an alias.
        """
        warmer, listed = self._warmer, self._warmer.settings.listed
        aliases = [alias.name for alias in listed.aliases]
        # Taken for a model's name, it would be skipped, and in CI asked of the registry.
        if key not in self and (meant := closest(key, aliases)):
            names = ", ".join(listed.names)
            raise KeyError(
                explained(
                    f"no alias {key!r}: did you mean {meant!r}? Listed are {names}", "no-alias"
                )
            )
        want = Want(test=f"ollama_models[{key!r}]", specs=(_one_spec(key),))
        (spec,) = resolve(want, listed)
        if not self._look_up or needs_no_server_now(
            self._session.config, lambda: bool(wants_of(self._session.items))
        ):
            return OllamaModel(spec, Outcome(key=spec.key, model=spec.name, status="ready"))
        verdict = check_of(self._session.config).verdict(want, warmer)
        if verdict is not None:
            enforce(verdict, self._session)
        return OllamaModel(spec, outcome_at_run_time(spec, warmer))

    @property
    def default(self) -> OllamaModel:
        """The only listed model, or the first one, ready for use; for fixtures of a wide scope.

        It skips or fails the test like ``ollama_models[...]``, and fails it where none is listed.
        """
        listed = self._warmer.settings.listed
        if not listed.all:
            pytest.fail(
                "ollama_models.default is the first listed model, and none is listed. Run with "
                '--ollama-preload MODEL, or use ollama_models["MODEL"].',
                pytrace=False,
            )
        return self[str(listed.all[0])]

    def __contains__(self, key: str) -> bool:
        """Whether *key* names a listed model; asks no server."""
        listed = self._warmer.settings.listed
        return listed.given(listed.meant(_one_spec(key))) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._warmer.settings.listed.names)

    def __len__(self) -> int:
        return len(self._warmer.settings.listed.all)


def _one_spec(key: str) -> ModelSpec:
    try:
        specs = parse_specs(key, "ollama_models[...]")
    except BadSpec as exc:
        raise KeyError(str(exc)) from None
    if len(specs) != 1:
        raise KeyError(f"expected one model, got {key!r}")
    return specs[0]


def spec_of(request: pytest.FixtureRequest, url: str) -> ModelSpec:
    """Return the spec of the first model of the test that asks; it is ready on the server *url*."""
    listed = settings_of(request.config).listed
    fixture = request.fixturename or "ollama_model"
    problem, parameter = "", None
    try:
        want, parameter = want_of(request.node, replayed=True), parameter_of(request.node)
    except BadMark as exc:
        problem = str(exc)
    if problem:
        # Not in the except: pytest would show the message twice.
        pytest.fail(problem, pytrace=False)
    # By request.getfixturevalue() a test can ask without having been seen to at collection.
    seen = want is not None and bool(resolve(want._replace(fixture=""), listed))
    if want is None or not want.specs:
        specs = () if parameter is None else (parameter,)
        want = Want(test=request.node.nodeid, fixture=fixture, specs=specs)
    try:
        spec = resolve(want, listed)[0]
    except NoModelNamed as exc:
        problem = str(exc)
    if problem:
        pytest.fail(problem, pytrace=False)
    if not seen and not is_replayed(request.node, request.node.iter_markers()):
        OllamaModels(request.session, url)[str(spec)]
    return spec


@contextmanager
def ensure_elsewhere(item: pytest.Item, url: str) -> Iterator[None]:
    """Make the models of *item* ready on the server *url*; skip or fail it where that cannot be."""
    config = item.config
    # --setup-only runs fixtures, and must not touch the network.
    if settings_of(config).off or is_looking(config):
        yield
        return
    try:
        want = want_of(item)
    except BadMark as exc:
        pytest.fail(str(exc), pytrace=False)
    verdict = None
    # Where it cannot look whether all is still warm, the test runs.
    with suppress(CannotLook):
        if want is not None:
            verdict = check_of(config).before(want, _warmer_at(config, url))
    if verdict is not None:
        watch(config)
        state_of(item).enforced = verdict
        enforce(verdict, item.session)
    yield
    check_of(config).after(item.nodeid)


def _warmer_at(config: pytest.Config, url: str) -> Warmer:
    host = host_of(config, url)
    warn_unencrypted(config, [host])
    return warmers_of(config).at(host)


def host_of(config: pytest.Config, url: object) -> Host:
    """Return the server that the fixture ollama_host, the suite's own maybe, names."""
    problem, ours = f"the fixture ollama_host returned {url!r}", settings_of(config).host
    if isinstance(url, str):
        try:
            host = read_host(url, "the fixture ollama_host")
        except BadHost as exc:
            pytest.fail(str(exc), pytrace=False)
        # One that leaves out the user and password of the run's own address means the same server.
        return ours if host.url == ours.url and host.login in ("", ours.login) else host
    pytest.fail(
        explained(f"{problem}; expected a string such as 'http://host:11434'", "hook-failed"),
        pytrace=False,
    )
