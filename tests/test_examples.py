"""The examples of Compose and CI are sound; tests/live runs them."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.live.provide import OLLAMA_VERSION
from tests.recipes import (
    COMPOSE,
    CURL,
    EXAMPLES,
    GITHUB,
    GITLAB,
    JOBS,
    interpolated,
    read,
    services,
    steps_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOTH = pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, CURL]], ids=["pip", "curl"])


def shell_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the scripts of a recipe, each with the shell that runs it there."""
    if path in JOBS:
        for script in steps_of(path):
            yield "bash", script
    else:
        files = [COMPOSE] if path == COMPOSE else [COMPOSE, path]
        for service in services(*files, environ={}).values():
            if service.command:
                yield "sh", service.command[-1]


@pytest.mark.parametrize("path", [COMPOSE, CURL, *JOBS], ids=lambda path: path.name)
def test_every_script_parses(path: Path) -> None:
    scripts = list(shell_of(path))
    assert scripts
    for shell, script in scripts:
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
        assert (0, "") == (done.returncode, done.stderr), script


def test_every_yaml_file_of_the_examples_is_looked_at() -> None:
    files = {path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".yml")}
    # tests/test_doc_examples.py runs these.
    others = {path for path in files if path.parent.name in ("tutorial", "move_ci")}
    others |= {path for path in files if "cassettes" in path.parts}
    assert {COMPOSE, CURL, *JOBS} == files - others
    assert {GITHUB, GITLAB} < {*JOBS}


def test_keys_of_the_examples_stand_once() -> None:
    for path in (COMPOSE, CURL, *JOBS):
        _check(yaml.compose(path.read_text("utf-8")))


def _check(node: Any) -> None:
    # PyYAML takes the last of two equal keys without a word; Compose and GitHub refuse both.
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), node.start_mark
        for _, value in node.value:
            _check(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item)


@BOTH
def test_services_start_when_what_they_need_is_done(files: list[Path]) -> None:
    found = services(*files, environ={})
    assert ["ollama", "model_puller", "model_preloader", "tests"] == list(found)
    for service in found.values():
        for name, condition in service.depends_on.items():
            needed = found[name].raw
            if condition == "service_healthy":
                assert ["CMD", "ollama", "list"] == needed["healthcheck"]["test"]
            else:
                # One that is started again whenever it ends never completes.
                assert ("service_completed_successfully", "no") == (condition, needed["restart"])
    healthy = {name for name, one in found.items() if "service_healthy" in one.depends_on.values()}
    assert {"model_puller", "model_preloader"} == healthy
    assert {"model_preloader": "service_completed_successfully"} == found["tests"].depends_on


@BOTH
def test_a_list_of_models_never_becomes_the_directory_of_the_server(files: list[Path]) -> None:
    found = services(*files, environ={"OLLAMA_MODELS": "a b", "OLLAMA_PRELOAD_MODELS": "a"})
    assert "OLLAMA_MODELS" not in found["ollama"].environment
    assert not any("env_file" in service.raw for service in found.values())


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"A": "a"}, "a"), ({"B": "b"}, "b"), ({"A": "", "B": "b"}, "b"), ({}, "c")],
)
def test_nested_defaults(environ: dict[str, str], expected: str) -> None:
    assert f"$x {expected}" == interpolated("$$x ${A:-${B:-c}}", environ)


@pytest.mark.parametrize(
    ("job", "number"),
    [("github-actions", 5), ("github-short", 2), ("github-serve", 4), ("github-gpu", 2)],
)
def test_actions_are_pinned_to_commits_whose_versions_are_told(job: str, number: int) -> None:
    uses = re.findall(r"uses: (.*)", (EXAMPLES / "ci" / f"{job}.yml").read_text("utf-8"))
    assert number == len(uses)
    for one in uses:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)


@pytest.mark.parametrize("job", ["github-actions", "github-serve"])
def test_the_cache_of_github_is_restored_and_saved_under_one_key_and_path(job: str) -> None:
    steps = read(EXAMPLES / "ci" / f"{job}.yml")["jobs"]["tests"]["steps"]
    restore, save = (step["with"] for step in steps if "cache" in step.get("uses", ""))
    assert restore == save


def test_the_examples_name_the_ollama_that_the_live_tests_run() -> None:
    assert f"ollama/ollama:{OLLAMA_VERSION}" == read(COMPOSE)["services"]["ollama"]["image"]
    for path in JOBS:
        found = re.findall(r"OLLAMA_VERSION: (.*)", path.read_text("utf-8"))
        assert path.stem.endswith(("short", "gpu")) or [OLLAMA_VERSION] == found
    assert OLLAMA_VERSION == read(GITHUB)["env"]["OLLAMA_VERSION"]
    assert OLLAMA_VERSION == read(GITLAB)["tests"]["variables"]["OLLAMA_VERSION"]
