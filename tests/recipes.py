"""The examples of Compose, GitHub and GitLab, read as these read them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
COMPOSE = EXAMPLES / "compose" / "compose.yaml"
CURL = EXAMPLES / "compose" / "compose.curl.yaml"
GITHUB = EXAMPLES / "ci" / "github-actions.yml"
GITLAB = EXAMPLES / "ci" / "gitlab-ci.yml"
JOBS = sorted((EXAMPLES / "ci").glob("*.yml"))

# What stands in for the commands that install something: a line with what they were asked.
RECORD = '#!/bin/sh\necho "${0##*/} $*" >> "$INSTALLED"\n'
PYTHON = '#!/bin/sh\ncase "$*" in "-m pip"*) echo "python $*" >> "$INSTALLED" ;; *) exec "%s" "$@" ;; esac\n'


def read(path: Path) -> Any:
    """Return what is in a YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def steps_of(job: Path) -> list[str]:
    """Return the scripts of a job in the order in which GitHub, GitLab, Azure or CircleCI run them.

    What they fill in themselves is ``text``.
    """
    content = read(job)
    if "workflows" in content:
        steps = [step["run"] for step in content["jobs"]["tests"]["steps"] if "run" in step]
        scripts = [step if isinstance(step, str) else step["command"] for step in steps]
    elif "pool" in content:
        scripts = [step["bash"] for step in content["steps"] if "bash" in step]
    elif "jobs" in content:
        scripts = [step["run"] for step in content["jobs"]["tests"]["steps"] if "run" in step]
    else:
        tests = content["tests"]
        scripts = ["\n".join([*tests.get("before_script", ()), *tests["script"]])]
    return [re.sub(r"\$\{\{.*?\}\}", "text", script) for script in scripts]


@dataclass(frozen=True)
class Service:
    """A service of a Compose file, ready to run."""

    command: list[str]
    environment: dict[str, str]
    depends_on: dict[str, str]
    raw: dict[str, Any]


def services(*files: Path, environ: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of *files*, later over earlier ones, in the order in which they start."""
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, new in read(file)["services"].items():
            old = merged.setdefault(name, {})
            for key in ("environment", "depends_on"):
                new[key] = old.get(key, {}) | new.get(key, {})
            old.update(new)
    needs = {name: list(raw["depends_on"]) for name, raw in merged.items()}
    return {
        name: _service(merged[name], environ) for name in TopologicalSorter(needs).static_order()
    }


def _service(raw: dict[str, Any], environ: Mapping[str, str]) -> Service:
    command = [*raw.get("entrypoint", []), *raw.get("command", [])]
    return Service(
        command=[interpolated(word, environ) for word in command],
        environment={
            key: interpolated(value, environ) for key, value in raw["environment"].items()
        },
        depends_on={name: how["condition"] for name, how in raw["depends_on"].items()},
        raw=raw,
    )


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """Return *text* with its ``${NAME:-DEFAULT}`` filled in, and ``$$`` as ``$``."""
    text = text.replace("$$", "\0")
    innermost = re.compile(r"\$\{(\w+):-([^${}]*)\}")
    while innermost.search(text):
        text = innermost.sub(lambda found: environ.get(found[1]) or found[2], text)
    # Compose would take it for a variable of its own.
    assert "$" not in text, f"a $ that is not doubled: {text}"
    return text.replace("\0", "$")


def stand_ins(folder: Path, *names: str) -> Path:
    """Put into *folder* what stands in for *names*, commands that install; return it."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(PYTHON % sys.executable if name == "python" else RECORD, "utf-8")
        (folder / name).chmod(0o755)
    return folder


@dataclass
class Machine:
    """Runs shell commands in *folder*, with nothing of our own environment; ends what they leave."""

    folder: Path
    path: list[Path]
    installed: Path
    env: dict[str, str] = field(default_factory=dict)
    output: str = ""
    _groups: list[int] = field(default_factory=list)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(signal.SIGKILL)

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return what a command sees."""
        where = [*self.path, Path(sys.executable).parent, *os.get_exec_path()]
        return {
            "PATH": os.pathsep.join(map(str, where)),
            "HOME": str(self.folder),
            "INSTALLED": str(self.installed),
            "PYTHONDONTWRITEBYTECODE": "1",
            # What pip would have installed is loaded, nothing else that happens to be here.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-p ollama_warmup",
            **self.env,
            **env,
        }

    def start(
        self, command: list[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start *command*; its output is added to ``output`` by :meth:`finish`."""
        process = subprocess.Popen(
            command,
            env=self.environment(env),
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )
        self._groups.append(process.pid)
        return process

    def finish(self, process: subprocess.Popen[str]) -> int:
        """Wait for *process*; return its exit code."""
        self.output += process.communicate(timeout=100)[0]
        return process.returncode

    def run(self, command: list[str], env: Mapping[str, str], cwd: Path | None = None) -> int:
        """Run *command*; return its exit code."""
        return self.finish(self.start(command, env, cwd))

    def end(self, number: signal.Signals) -> None:
        """Send a signal to all that the commands have left behind."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, number)
