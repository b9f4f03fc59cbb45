"""Services at the server's address whose answers have no end: the run does, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import ONE_TEST, Suite
from tests.talker import FAST, SLOW, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROCESSES = pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
LISTED = ["--ollama-preload=llama3.2:1b", "--ollama-on-unavailable=skip"]
GOES_ON = "no complete answer for 1 s"


@PROCESSES
@pytest.mark.parametrize(
    ("answer", "pause_s", "said"),
    [
        (SLOW["body"], 0.02, GOES_ON),
        (SLOW["100 Continue"], 0.02, GOES_ON),
        (FAST["body"], 0.0, "is not Ollama (GET /api/version: more than 8.0 MB without an end)"),
    ],
    ids=["slow", "100", "fast"],
)
def test_a_run_ends_and_says_why(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    answer: Callable[[], Iterable[bytes]],
    pause_s: float,
    said: str,
) -> None:
    suite.write(ONE_TEST)
    with talking(answer, pause_s) as (talker, _):
        monkeypatch.setenv("OLLAMA_HOST", talker.address)
        run = suite.run("--ollama-wait=1", *LISTED, *args)
    assert {"skipped": 1} == run.counts
    assert said in run.out
    assert "Traceback" not in run.out + run.err


def test_an_unmarked_suite_does_not_mind_such_a_service(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    with talking(FAST["body"]) as (talker, _):
        monkeypatch.setenv("OLLAMA_HOST", talker.address)
        run = suite.run("--ollama-wait=1", *LISTED)
    assert {"passed": 1} == run.counts
    assert "more than 8.0 MB without an end" in run.out
