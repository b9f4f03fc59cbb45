"""What processes of a run leave for the one that writes the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup import notes

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://127.0.0.1:11434"


def test_a_server_that_was_lost_is_one_event_in_whatever_words(tmp_path: Path) -> None:
    notes.write(tmp_path, "gw0", "lost", {URL: ("connection lost", ["a", "b"])})
    notes.write(tmp_path, "gw1", "lost", {URL: ("connection refused", ["c"]), "m": ("no", ["d"])})
    assert {"connection lost": ["a", "b", "c"], "no": ["d"]} == notes.lost(tmp_path)
