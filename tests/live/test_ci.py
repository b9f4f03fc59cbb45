"""The recipes of GitHub and GitLab on a real server: their own steps, all but what they install."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.server import free_port
from tests.recipes import GITHUB, GITLAB, Machine, read, stand_ins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.live.provide import Provided
    from tests.live.registry import Registry

SUITE = """
import json, os, urllib.request
import pytest

@pytest.mark.requires_model
def test_warm(ollama_host, ollama_model):
    with urllib.request.urlopen(ollama_host + "/api/ps") as answer:
        assert [ollama_model] == [model["name"] for model in json.load(answer)["models"]]
    assert not os.environ.get("BREAK")
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def machine(tmp_path: Path, parts: Provided, port: int) -> Iterator[Machine]:
    stubs = stand_ins(tmp_path / "bin", "curl", "sudo", "tar", "apt-get", "python")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "test_warm.py").write_text(SUITE, "utf-8")
    env = {"CI": "true", "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NO_CLOUD": "1"}
    with Machine(folder, [stubs, parts.ollama.parent], tmp_path / "installed", env) as machine:
        yield machine


def ends(machine: Machine, port: int) -> None:
    """End the machine as CI does after a job: with all that runs there."""
    machine.end(signal.SIGTERM)
    deadline = time.monotonic() + 10
    with suppress(OSError):
        while time.monotonic() < deadline:
            socket.create_connection(("127.0.0.1", port)).close()
            time.sleep(0.02)


class GitHub:
    """Runs the steps of the job as GitHub does; the caches are folders in *caches*."""

    def __init__(self, machine: Machine, caches: Path, models: str) -> None:
        self.machine = machine
        self.caches = caches
        self.workflow = read(GITHUB)
        self.workflow["env"]["OLLAMA_PRELOAD_MODELS"] = models

    def run(self, home: Path, **env: str) -> list[str]:
        """Run the job in an empty *home*; return the steps that did something, and how they ended."""
        home.mkdir()
        done, failed = [], False
        outputs: dict[str, str] = {}
        job = self.workflow["jobs"]["tests"]
        assert "bash" == job["defaults"]["run"]["shell"]
        for step in job["steps"]:
            if not self._due(step.get("if", ""), outputs, failed=failed):
                continue
            name = step.get("name", step.get("uses", "").partition("@")[0])
            if "run" in step:
                env = {**self.workflow["env"], **env, "HOME": str(home), "RUNNER_TEMP": str(home)}
                if code := self._shell(step, env, outputs):
                    failed = True
                    name += f": {code}"
            elif step["uses"].startswith("actions/cache/"):
                self._cache(step, home, outputs)
            done.append(name)
        return done

    @staticmethod
    def _due(condition: str, outputs: dict[str, str], *, failed: bool) -> bool:
        if condition == "always()":
            return True
        if condition == "failure()":
            return failed
        if found := re.fullmatch(r"steps\.(\S+) != '(.*)'", condition):
            return not failed and outputs.get(found[1], "") != found[2]
        assert not condition, "a condition that this test cannot read"
        return not failed

    def _shell(self, step: dict[str, Any], env: dict[str, str], outputs: dict[str, str]) -> int:
        out = self.caches / "output"
        out.write_text("", "utf-8")
        # https://docs.github.com/actions: what "shell: bash" runs.
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = self.machine.run(shell, {**env, "GITHUB_OUTPUT": str(out)})
        for line in out.read_text("utf-8").splitlines():
            key, _, value = line.partition("=")
            outputs[f"{step['id']}.outputs.{key}"] = value
        return code

    def _cache(self, step: dict[str, Any], home: Path, outputs: dict[str, str]) -> None:
        found = re.fullmatch(r"\$\{\{ steps\.(\S+) \}\}", step["with"]["key"])
        assert found
        # No key is a bad input there.
        key = outputs[found[1]]
        assert key
        kept, path = self.caches / key, home / step["with"]["path"].removeprefix("~/")
        if step["uses"].startswith("actions/cache/save"):
            shutil.copytree(path, kept)
        elif kept.exists():
            shutil.copytree(kept, path)
            outputs[f"{step['id']}.outputs.cache-hit"] = "true"


def test_github_pulls_once_even_if_the_tests_fail(
    machine: Machine, own_registry: Registry, tmp_path: Path, port: int
) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    name = own_registry.name("completion")
    github = GitHub(machine, caches, f"{name},insecure=true")

    steps = github.run(tmp_path / "one", BREAK="1")
    before = ["Start Ollama", "Make the models ready"]
    after = ["Save the models", "Test: 1", "Keep the report", "Show the server's log"]
    assert [*before, *after] == steps[-6:], machine.output
    assert {"ollama.html", "ollama.json"} <= {path.name for path in machine.folder.iterdir()}
    assert '"/api/ps"' in machine.output, "the log of the server is shown"
    installed = machine.installed.read_text("utf-8").splitlines()
    assert ["curl", "python", "sudo"] == sorted(line.split()[0] for line in installed)
    ends(machine, port)

    asked = len(own_registry.requests)
    machine.output = ""
    steps = github.run(tmp_path / "two")
    assert [*before, "Test", "Keep the report"] == steps[-4:], machine.output
    assert asked == len(own_registry.requests)
    assert "1 passed" in machine.output
    ends(machine, port)

    # Another list is another cache.
    github = GitHub(machine, caches, f"{own_registry.name('agent')},insecure=true")
    assert "Save the models" in github.run(tmp_path / "three")
    assert 2 == len([one for one in caches.iterdir() if one.is_dir()])
    ends(machine, port)


def test_github_ends_where_a_model_cannot_be_had(
    machine: Machine, own_registry: Registry, tmp_path: Path
) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    github = GitHub(machine, caches, f"{own_registry.name('nobody')},insecure=true")
    steps = github.run(tmp_path / "one")
    after = ["Keep the report", "Show the server's log"]
    assert ["Make the models ready: 1", *after] == steps[-3:]
    assert "file does not exist" in machine.output


class GitLab:
    """Runs the job as GitLab does; its one cache is a folder."""

    def __init__(self, machine: Machine, cache: Path) -> None:
        self.machine = machine
        self.kept = cache
        self.job = read(GITLAB)["tests"]

    def run(self, models: str, **env: str) -> int:
        """Run the job in the checkout, whose cache is restored before and saved after it."""
        cache, folder = self.job["cache"], self.machine.folder
        (path,) = cache["paths"]
        shutil.rmtree(folder / path, ignore_errors=True)
        if self.kept.exists():
            shutil.copytree(self.kept, folder / path)
        variables = {
            name: value.replace("$CI_PROJECT_DIR", str(folder))
            for name, value in self.job["variables"].items()
        }
        env = {**variables, "OLLAMA_PRELOAD_MODELS": models, **env}
        lines = [*self.job["before_script"], *self.job["script"]]
        # The shell of its runner, https://gitlab.com/gitlab-org/gitlab-runner: shells/bash.go.
        code = self.machine.run(["bash", "-c", "\n".join(["set -eo pipefail", *lines])], env)
        if code == 0 or cache["when"] == "always":
            shutil.rmtree(self.kept, ignore_errors=True)
            shutil.copytree(folder / path, self.kept)
        return code


def test_gitlab_keeps_the_models_of_one_list(
    machine: Machine, own_registry: Registry, tmp_path: Path, port: int
) -> None:
    gitlab = GitLab(machine, tmp_path / "cache")
    first, second = (f"{own_registry.name(one)},insecure=true" for one in ("completion", "agent"))

    assert 1 == gitlab.run(first, BREAK="1"), machine.output
    preloaded, _, tested = machine.output.partition("test session starts")
    assert "   pulled " in preloaded
    assert "1 failed" in tested
    ends(machine, port)

    asked = len(own_registry.requests)
    assert 0 == gitlab.run(first), machine.output
    assert asked == len(own_registry.requests)
    ends(machine, port)

    assert 0 == gitlab.run(second), machine.output
    ends(machine, port)
    kept = [path.parent.name for path in (gitlab.kept / "manifests").rglob("latest")]
    assert ["agent"] == kept
    for name in gitlab.job["artifacts"]["paths"]:
        assert (machine.folder / name).exists()
    asked_to_install = machine.installed.read_text("utf-8").splitlines()
    assert 3 * 5 == len(asked_to_install), asked_to_install
