"""The names that users import, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing

import pytest

import pytest_ollama_warmup
from pytest_ollama_warmup import (
    BadSetting,
    OllamaModel,
    OllamaModels,
    OllamaWarmupWarning,
    Record,
    preload,
)
from pytest_ollama_warmup.config.options import OPTIONS

PUBLIC = ["BadSetting", "OllamaModel", "OllamaModels", "OllamaWarmupWarning", "Record", "preload"]


def imported_after(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_these_names_are_public() -> None:
    assert PUBLIC == pytest_ollama_warmup.__all__
    assert set(PUBLIC) <= set(dir(pytest_ollama_warmup))
    assert "__all__" in str(pytest_ollama_warmup.__doc__)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Models'"):
        pytest_ollama_warmup.Models  # noqa: B018


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    ours = {one for one in imported_after("import pytest_ollama_warmup") if "ollama" in one}
    assert {"pytest_ollama_warmup"} == ours


@pytest.mark.parametrize("name", [*PUBLIC[:-1]])
def test_a_name_for_an_annotation_imports_no_client(name: str) -> None:
    imported = imported_after(f"from pytest_ollama_warmup import {name}")
    assert set() == {"httpx", "rich", "ollama", "xdist"} & imported


def test_preload_has_a_parameter_for_each_option_that_it_can_use() -> None:
    options = {option.name for option in OPTIONS if not option.pytest_only}
    parameters = inspect.signature(preload).parameters
    assert {"specs", *options} == set(parameters)
    kinds = {one.kind for name, one in parameters.items() if name != "specs"}
    assert {inspect.Parameter.KEYWORD_ONLY} == kinds


def name_of(models: OllamaModels) -> str:
    model: OllamaModel = models["chat"]
    return model.name


def failed_of(record: Record) -> list[str]:
    return [outcome.error for outcome in record.failed]


def test_users_annotate_with_them() -> None:
    # The rest of it is for mypy.
    hints = typing.get_type_hints(name_of) | typing.get_type_hints(failed_of)
    assert {"models": OllamaModels, "record": Record, "return": list[str]} == hints
    assert issubclass(BadSetting, ValueError)
    assert issubclass(OllamaWarmupWarning, pytest.PytestWarning)
