"""What happened, as JSON."""

from __future__ import annotations

import json

import pytest

from pytest_ollama_warmup.errors import (
    BadHost,
    LoadFailed,
    PullFailed,
    ServerUnreachable,
    WarmupError,
)
from pytest_ollama_warmup.warmup.outcome import Outcome, Step
from pytest_ollama_warmup.warmup.record import Record

FULL = Outcome(
    key="k",
    model="llama3.2:1b",
    status="ready",
    by="gw0",
    error="e\n",
    brief="b",
    notes=("n1", "n2"),
    steps=(
        Step(kind="pull", start=1.5, seconds=24.1, size=1_300_000_000),
        Step(kind="load", start=30.0, seconds=2.1),
    ),
    digest="abc",
    size=7,
    capabilities=("completion", "tools"),
    context_length=4096,
    options=(("num_ctx", 4096), ("use_mmap", True)),
)
BARE = Outcome(key="k", model="", status="failed")


@pytest.mark.parametrize("outcome", [FULL, BARE], ids=["full", "bare"])
def test_an_outcome_survives_a_trip_through_json(outcome: Outcome) -> None:
    assert outcome == Outcome.from_dict(json.loads(json.dumps(outcome.to_dict())))


def test_an_outcome_in_json_names_its_options() -> None:
    data = json.loads(json.dumps(FULL.to_dict()))
    assert {"num_ctx": 4096, "use_mmap": True} == data["options"]
    assert {"kind": "load", "start": 30.0, "seconds": 2.1, "size": 0} == data["steps"][1]


def test_unknown_capabilities_are_not_the_same_as_none() -> None:
    none = Outcome(key="k", model="m", status="ready", capabilities=())
    assert () == Outcome.from_dict(json.loads(json.dumps(none.to_dict()))).capabilities
    assert None is Outcome.from_dict(json.loads(json.dumps(BARE.to_dict()))).capabilities


@pytest.mark.parametrize(
    ("error", "cause", "failed_by"),
    [
        (LoadFailed("m", "", "no room", "", "out of memory"), "out of memory", "model"),
        (PullFailed("m", "", "gone", "", "server lost"), "server lost", "server"),
        (ServerUnreachable("http://h:1", "", "no answer", 1.0), "no answer", "server"),
        (BadHost("h:x", "OLLAMA_HOST", "port 'x'"), "bad setting", "server"),
        (WarmupError("odd"), "other", "model"),
    ],
)
def test_a_failure_keeps_its_cause_and_who_failed(
    error: WarmupError, cause: str, failed_by: str
) -> None:
    failure = FULL.failing(error)
    assert ("failed", str(error), error.brief) == (failure.status, failure.error, failure.brief)
    data = json.loads(json.dumps(failure.to_dict()))
    assert (cause, failed_by) == (data["cause"], data["failed_by"])


def test_what_is_ready_has_no_cause() -> None:
    assert ("", "") == (FULL.cause, FULL.failed_by)


def test_only_ready_is_ready() -> None:
    assert FULL.ready
    assert not BARE.ready


def test_a_step_is_found_by_its_kind() -> None:
    assert FULL.steps[1] is FULL.step("load")
    assert None is FULL.step("wait")


def test_the_title_is_the_model_with_its_options_or_the_server() -> None:
    assert "llama3.2:1b,num_ctx=4096,use_mmap=true" == FULL.title
    assert "the server" == BARE.title


def test_a_record_keeps_the_last_outcome_of_a_model_in_the_first_ones_place() -> None:
    record, other = Record(), Outcome(key="other", model="o", status="ready")
    for outcome in (FULL, BARE, other):
        record.add(outcome)
    assert [("k", BARE), ("other", other)] == list(record.models.items())
