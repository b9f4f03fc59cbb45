"""What processes of a run leave for the one that writes the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.errors import LoadFailed, ServerUnreachable
from pytest_ollama_warmup.session import notes
from pytest_ollama_warmup.warmup.check import what_is_lost
from pytest_ollama_warmup.warmup.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ollama_warmup.errors import NoAnswer

URL = "http://127.0.0.1:11434"


def test_a_server_that_was_lost_is_one_event_in_whatever_words(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, 60)
    directory.leave("gw0", "lost", {URL: ("connection lost", ["a", "b"])})
    directory.leave("gw1", "lost", {URL: ("connection refused", ["c"]), "m": ("no", ["d"])})
    assert {"connection lost": ["a", "b", "c"], "no": ["d"]} == notes.lost(directory)


def in_a_load(cause: NoAnswer) -> LoadFailed:
    error = LoadFailed("a:1", "from --ollama-preload", f"{cause} while loading", "")
    error.__cause__ = ServerUnreachable(URL, "default", cause, 0.0)
    return error


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ServerUnreachable(URL, "default", "connection refused", 1.0), URL),
        (ServerUnreachable(URL, "default", "no answer", 1.0), URL),
        (in_a_load("connection lost"), URL),
        (in_a_load("no answer"), str(in_a_load("no answer"))),
        (LoadFailed("a:1", "", "no room", ""), str(LoadFailed("a:1", "", "no room", ""))),
    ],
)
def test_a_server_that_ends_in_a_load_is_lost_as_one_that_ends_between(
    error: ServerUnreachable | LoadFailed, what: str
) -> None:
    assert what == what_is_lost(error)
