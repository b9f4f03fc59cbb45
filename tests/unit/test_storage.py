"""How much room there is where a server downloads to, as far as that can be seen."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.host import Host
from pytest_ollama_warmup.ollama.storage import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

HERE = Host("http://127.0.0.1:11434", "default")
DIGEST = f"sha256:{'ab' * 32}"


def with_part(folder: Path) -> Path:
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"sha256-{'ab' * 32}-partial-0").touch()
    return folder


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were asked for; each has 5 free bytes."""
    asked: list[str] = []

    def usage(folder: str) -> object:
        asked.append(folder)
        return SimpleNamespace(free=5)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


@pytest.mark.parametrize(("variable", "below"), [("OLLAMA_MODELS", ""), ("HOME", ".ollama/models")])
def test_the_disk_is_that_on_which_the_part_itself_is_seen(
    tmp_path: Path, free: list[str], variable: str, below: str
) -> None:
    folder = with_part(tmp_path / below)
    assert 5 == free_bytes(HERE, DIGEST, {variable: str(tmp_path)})
    assert [str(folder)] == free


def test_a_part_that_is_not_seen_lies_somewhere_else(tmp_path: Path, free: list[str]) -> None:
    with_part(tmp_path)
    other = f"sha256:{'cd' * 32}"
    assert free_bytes(HERE, other, {"OLLAMA_MODELS": str(tmp_path)}) is None
    assert free_bytes(HERE, DIGEST, {}) is None
    assert [] == free


@pytest.mark.parametrize("url", ["http://gpu-box:11434", "https://10.0.0.7:443"])
def test_the_disk_of_another_machine_is_not_known(
    tmp_path: Path, free: list[str], url: str
) -> None:
    with_part(tmp_path)
    there = Host(url, "--ollama-host")
    assert free_bytes(there, DIGEST, {"OLLAMA_MODELS": str(tmp_path)}) is None


@pytest.mark.parametrize("digest", ["", "md5:abab", "sha256:../../x", "sha256:*"])
def test_a_digest_that_is_none_is_no_pattern(tmp_path: Path, free: list[str], digest: str) -> None:
    with_part(tmp_path)
    assert free_bytes(HERE, digest, {"OLLAMA_MODELS": str(tmp_path)}) is None


def test_a_folder_that_may_not_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    with_part(tmp_path)
    assert free_bytes(HERE, DIGEST, {"OLLAMA_MODELS": str(tmp_path)}) is None
