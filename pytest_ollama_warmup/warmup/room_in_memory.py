"""Which models fit into the server's memory together, as far as was seen.

A model that does not fit beside those that the run has loaded is left to the test that needs it: to
load it before the tests would cost a load of its own, and one of the model that has to make room.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.config.model_specs import RUNNER_KEYS
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.responses import loaded_as

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.responses import LoadedModel, ModelInfo
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.run_directory import HostDirectory

_PARAMETER = re.compile(rf"(?<!\S)({'|'.join(RUNNER_KEYS)}) +(\S+)")


def runs_with(parameters: str, options: Mapping[str, object]) -> dict[str, str]:
    """Return the runner options of a request with *options* to a model with these *parameters*."""
    asked = {key: str(options[key]).lower() for key in RUNNER_KEYS if key in options}
    return dict(_PARAMETER.findall(parameters)) | asked


def fits_runner(wanted: dict[str, str], has: dict[str, str], context: int) -> bool:
    """Whether a request for *wanted* is served by a runner that *has* these options.

    *context* is the context length that it was seen with, 0 where the server does not say. Without
    one of its own a request takes the server's default, as a runner does.
    """
    if context and "num_ctx" in wanted:
        has = {**has, "num_ctx": str(context)}
    return wanted == has


class Loaded(NamedTuple):
    """A model that the run has loaded, and what its place in memory depends on."""

    key: str
    title: str
    model: str
    digest: str
    weights: str
    parameters: str
    options: Mapping[str, int | bool]
    context: int

    @property
    def short(self) -> str:
        """The name as the server lists it."""
        return ModelName.parse(self.model).short


class Room:
    """The memory of one server; all processes of a run share what they find out, in *directory*."""

    def __init__(self, directory: HostDirectory) -> None:
        self._directory = directory
        # What this process has loaded is not recorded yet when the next one has its turn.
        self._here: dict[str, Loaded] = {}

    def learn(self, crowds: Iterable[Iterable[str]]) -> None:
        """Begin with what earlier runs have seen: sets of models that did not fit."""
        if sorted_crowds := [sorted(crowd) for crowd in crowds]:
            self._directory.crowds.write(sorted_crowds)

    @property
    def crowds(self) -> list[frozenset[str]]:
        """The sets of models that did not fit in earlier runs."""
        return [frozenset(crowd) for crowd in self._directory.crowds.read([])]

    @property
    def displaced(self) -> dict[str, list[str]]:
        """The models that had to go in this run, by the one that took their place."""
        displaced: dict[str, list[str]] = self._directory.displaced.read({})
        return displaced

    @property
    def is_short(self) -> bool:
        """Whether the models of the run, or of earlier ones, do not fit together."""
        return self._directory.displaced.exists() or self._directory.crowds.exists()

    def reason_to_leave_out(self, target: Target, info: ModelInfo) -> str:
        """Say why *target* is not loaded beside the models that the run has loaded; empty if it is.

        Two names with equal weights, or one with two sets of options, have one place: the server
        keeps one of them at a time.
        """
        spec, loaded = target.spec, self._loaded()
        for model in loaded:
            same = ModelName.parse(model.model).key == spec.model_key
            if not (same or (info.weights and model.weights == info.weights)):
                continue
            wanted = runs_with(info.parameters, target.options)
            if not fits_runner(wanted, runs_with(model.parameters, model.options), model.context):
                return f"it has the weights of {model.title}, and the server keeps one at a time"
        if self.displaced:
            return f"there was no room for all of {_names(loaded)}"
        here = {model.short for model in loaded}
        for crowd in self.crowds:
            if crowd <= here | {ModelName.parse(spec.name).short}:
                beside = _names([model for model in loaded if model.short in crowd])
                return f"it did not fit together with {beside} in the last run"
        return ""

    def add(self, target: Target, info: ModelInfo, loaded_models: list[LoadedModel]) -> None:
        """Note that *target* is loaded, and what had to make room for it."""
        spec = target.spec
        gone = [model for model in self._loaded() if not _is_among(loaded_models, model)]
        # One with equal weights had to go for want of a second place, not for want of memory.
        others = [
            model.title for model in gone if not (model.weights and model.weights == info.weights)
        ]
        if others:
            self.note_displaced(spec.title, others)
        loaded_model = loaded_as(loaded_models, spec.model_key, "")
        # Where it is not listed it shares the runner of another one.
        if loaded_model is not None:
            self._here[target.key] = Loaded(
                target.key,
                spec.title,
                spec.name,
                loaded_model.digest,
                info.weights,
                info.parameters,
                target.options,
                loaded_model.context_length,
            )

    def note_displaced(self, by: str, names: Sequence[str]) -> None:
        """Keep that *names* had to make room for *by*."""
        with suppress(OSError):
            self._directory.displaced.write({**self.displaced, by: list(names)})

    def _loaded(self) -> list[Loaded]:
        recorded = [
            outcome
            for outcome in self._directory.outcomes()
            if outcome.step("load") and outcome.listed
        ]
        return [*({outcome.key: _as_loaded(outcome) for outcome in recorded} | self._here).values()]


def make_room(
    client: Client, wanted: set[str], later: Sequence[set[str]], loaded: Sequence[Outcome]
) -> None:
    """Unload as many of *loaded* as *wanted* lacks, where the server was full before.

    Those go that are needed last, if at all, in *later* sets.

    Raises:
        ApiError, ServerError: the server does not say, or does not do it.
    """
    loaded_models = client.loaded_models()
    still_loaded = {outcome.key: outcome for outcome in loaded if _is_among(loaded_models, outcome)}
    absent = len(wanted - still_loaded.keys())
    # All that was loaded is still there: so far it had room for each.
    if not absent or {*map(_place, still_loaded.values())} == {*map(_place, loaded)}:
        return
    needed = {key: number for number, keys in reversed([*enumerate(later)]) for key in keys}
    others = sorted(still_loaded.keys() - wanted, key=lambda key: needed.get(key, len(later)))
    for key in others[-absent:]:
        client.unload(still_loaded[key].model)


def _as_loaded(outcome: Outcome) -> Loaded:
    learned = {"num_ctx": outcome.learned} if outcome.learned else {}
    return Loaded(
        outcome.key,
        outcome.title,
        outcome.model,
        outcome.digest,
        outcome.weights,
        outcome.parameters,
        {**learned, **dict(outcome.options)},
        outcome.context_length,
    )


def _place(outcome: Outcome) -> str:
    return outcome.weights or ModelName.parse(outcome.model).key


def _is_among(loaded_models: list[LoadedModel], outcome: Outcome | Loaded) -> bool:
    return loaded_as(loaded_models, ModelName.parse(outcome.model).key, outcome.digest) is not None


def _names(loaded: Iterable[Loaded]) -> str:
    return " and ".join(model.title for model in loaded)
