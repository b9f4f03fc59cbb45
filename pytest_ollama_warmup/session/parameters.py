"""The model that a test has as a parameter of the fixture ``ollama_model``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.model_specs import ModelSpec, parse_specs
from pytest_ollama_warmup.errors import BadMark, BadSpec, ParameterWithoutIndirect
from pytest_ollama_warmup.session.definitions import definitions_of, is_direct, is_from_us, is_ours
from pytest_ollama_warmup.session.mark_names import MARK
from pytest_ollama_warmup.session.state import OllamaWarmupWarning, settings_of, worker_input
from pytest_ollama_warmup.text import explained

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL_FIXTURE = "ollama_model"


def parameter_of(item: pytest.Item) -> ModelSpec | None:
    """Return the model that *item* gets because its fixture ``ollama_model`` is parametrized.

    However it came to that: by a mark, by ``pytest_generate_tests``, by ``params`` of a fixture of
    the suite that overrides ours. What is collected says all of it.

    Raises:
        BadMark: the parameter is no model's name.
    """
    value = _parameters(item).get(MODEL_FIXTURE, _NONE)
    if value is _NONE or not any(map(is_from_us, definitions_of(MODEL_FIXTURE, item))):
        return None
    spec = _one_spec(value, item)
    if spec is None:
        raise BadMark(f"parametrize: expected one model, got {value!r}", item.nodeid, MARK)
    return spec


def specs_of_parameter(item: pytest.Item) -> tuple[ModelSpec, ...]:
    """Return the model of ``parameter_of``, or nothing.

    Raises:
        BadMark: the parameter of our own fixture is no model's name.
    """
    try:
        spec = parameter_of(item)
    except BadMark:
        if is_ours(MODEL_FIXTURE, item):
            raise
        # Theirs may mean anything, and need not ask ours.
        return ()
    return () if spec is None else (spec,)


def check_direct(item: pytest.Item, specs: Mapping[str, ModelSpec]) -> None:
    """Refuse a parameter that names a model which nobody prepares: ``indirect`` was forgotten.

    Raises:
        ParameterWithoutIndirect: says what to add.
    """
    spec = _direct_model(item)
    if spec is not None and spec.model_key not in specs:
        raise ParameterWithoutIndirect(str(spec), item.nodeid, MODEL_FIXTURE)


_HINTED = pytest.StashKey[bool]()


def hint_at_indirect(item: pytest.Item) -> None:
    """Warn once where a test without a mark has a model as a plain argument: nothing loads it."""
    config, settings = item.config, settings_of(item.config)
    # Each worker collects all tests: one of them is enough.
    worker = worker_input(config).get("workerid", "gw0")
    if _HINTED in config.stash or settings.off or worker != "gw0":
        return
    try:
        spec = _direct_model(item)
    except BadMark:
        return
    # In other suites such an argument may be the name of anything, but hardly with a tag.
    if spec is None or not (settings.configured or ":" in spec.name):
        return
    config.stash[_HINTED] = True
    # Where warnings are errors, the suite runs as it would without us.
    with suppress(OllamaWarmupWarning):
        item.warn(
            OllamaWarmupWarning(
                explained(
                    f"parametrize({MODEL_FIXTURE!r}, ...) passes {str(spec)!r} to the test as a "
                    "plain argument, so nothing loads that model before the test. To have it "
                    "pulled and loaded, add indirect=True.",
                    "parameter-without-indirect",
                )
            )
        )


def _direct_model(item: pytest.Item) -> ModelSpec | None:
    """Return the model that *item* has as a plain argument, unless it is listed for the run.

    Raises:
        BadMark: it is no model's name.
    """
    value = _parameters(item).get(MODEL_FIXTURE, _NONE)
    if value is _NONE or not any(map(is_direct, definitions_of(MODEL_FIXTURE, item))):
        return None
    spec, listed = _one_spec(value, item), settings_of(item.config).listed
    return None if spec is None or listed.given(listed.meant(spec)) is not None else spec


_NONE = object()


def _one_spec(value: object, item: pytest.Item) -> ModelSpec | None:
    """Return the one model that a parameter names; None where it names none, or several."""
    if not isinstance(value, str):
        return None
    try:
        specs = parse_specs(value, MODEL_FIXTURE)
    except BadSpec as exc:
        raise BadMark(f"parametrize: {exc.message}", item.nodeid, MARK) from None
    return specs[0] if len(specs) == 1 else None


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    parameters: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return parameters
