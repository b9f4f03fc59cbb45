"""What a server answers, read so that nothing it holds can raise."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_warmup.ollama.responses import (
    LoadedModel,
    LocalModel,
    ModelInfo,
    PullProgress,
    find,
    loaded_as,
    parse,
    server_time,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "name",
    "model",
    "digest",
    "size",
    "context_length",
    "expires_at",
    "status",
    "total",
    "completed",
    "capabilities",
    "remote_host",
    "modelfile",
    "parameters",
]


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, json_values)))
def test_any_value_in_any_place_is_read(data: dict[str, object]) -> None:
    now = datetime.now(UTC)
    loaded_models, stored = LoadedModel.read(data, now), LocalModel.read(data)
    progress, info = PullProgress.read(data), ModelInfo.read(data)
    numbers = (loaded_models.size, loaded_models.context_length, stored.size, progress.total)
    assert all(0 <= one < 1 << 63 for one in (*numbers, progress.completed))
    assert isinstance(info.capabilities, tuple | None)
    find([loaded_models], "x")
    loaded_as([loaded_models], "x", "y")


@pytest.mark.parametrize("number", [10**400, -1, True, 1.5, float("nan"), "5", None, 1 << 63])
def test_what_is_no_size_counts_as_not_told(number: object) -> None:
    assert 0 == LocalModel.read({"name": "m", "size": number}).size


@pytest.mark.parametrize("text", ['{"total": 1' + "0" * 5000 + "}", "[" * 100_000, "\udc80", "{"])
def test_what_is_no_json_is_none(text: str) -> None:
    assert None is parse(text)


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "never",
        "Mon, 01 Jan 99999 00:00:00 GMT",
        f"Mon, 01 Jan {10**30} 00:00:00 GMT",
        "Mon, 99 Foo 2026 99:99:99 GMT",
        "Mon, 01 Jan 2026 00:00:00 -0000",
        "Mon, 01 Jan 2026 00:00:00 +9999",
    ],
)
def test_any_date_gives_a_time_to_reckon_with(date: str | None) -> None:
    found = server_time(date)
    assert found.tzinfo is not None
    LoadedModel.read({"expires_at": "2026-01-01T00:00:00Z"}, found)


@given(st.text())
def test_any_text_as_a_date_does(date: str) -> None:
    assert server_time(date).tzinfo is not None
