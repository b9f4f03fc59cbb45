"""What the guard does before a test, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.terms import Terms
from pytest_ollama_warmup.errors import ServerUnreachable
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.warmup.room_in_memory import Room
from pytest_ollama_warmup.warmup.run_directory import HostDirectory
from pytest_ollama_warmup.warmup.still_loaded import Guard

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_that_stays_away_is_waited_for_before_one_test_only(
    tmp_path: Path, nobody: str
) -> None:
    waits = list[str]()

    def wait() -> None:
        waits.append("waited")
        raise ServerUnreachable(nobody, "test", "connection refused", 1.0)

    directory = HostDirectory(tmp_path, 1.0)
    room = Room(directory)
    client = Client(parse_host(nobody, "test"))
    guard = Guard(client, directory, Terms(), "main", wait, room)
    for test in ("a", "b", "c"):
        with pytest.raises(ServerUnreachable):
            guard.before([], test, lambda target: set(), lambda: True)
    assert ["waited"] == waits
