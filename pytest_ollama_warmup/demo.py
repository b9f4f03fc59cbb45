"""The plugin at work on a small suite: cold against warm, two workers, one eviction."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pytest_ollama_warmup.commands import in_memory_after
from pytest_ollama_warmup.errors import BadSpec, ServerUnreachable, WarmupError
from pytest_ollama_warmup.ollama.answers import find
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.names import ModelName, is_cloud
from pytest_ollama_warmup.options import read_host
from pytest_ollama_warmup.report.status import keep_alive as rest_of
from pytest_ollama_warmup.text import seconds, size
from pytest_ollama_warmup.warmup.spec import FOREVER

if TYPE_CHECKING:
    from pytest_ollama_warmup.settings import Settings

# Of Ollama's library the smallest that completes text (271 MB).
SMALL = "smollm2:135m"
UNLOAD_LIMIT_S = 30.0
# What Ctrl-C in a terminal has told pytest too, and what it may take to end.
END_LIMIT_S = 2.0
KEEP_ALIVE_S = 600.0
LABEL = "[emulator] "
REPORT = "report.xml"

FILES = {
    "pytest.ini": "[pytest]\n",
    "conftest.py": """
        import os
        import pytest
        from pytest_ollama_warmup.ollama.client import Client
        from pytest_ollama_warmup.ollama.host import parse_host


        @pytest.fixture(scope="session")
        def client(ollama_host):
            return Client(parse_host(ollama_host, "demo"), os.environ.get("OLLAMA_API_KEY", ""))


        @pytest.fixture
        def ask(client, ollama_model):
            def ask(question):
                client.load(ollama_model, "generate", prompt=question, options={}, limit_s=120)

            return ask
        """,
    "test_chat.py": """
        import pytest


        @pytest.mark.requires_model("MODEL")
        @pytest.mark.parametrize("question", ["Who", "What", "Where", "Why"])
        def test_answers(ask, question):
            ask(question)
        """,
    "test_eviction.py": """
        import time
        import pytest

        pytestmark = pytest.mark.requires_model("MODEL")


        def test_that_evicts(client, ollama_model):
            client.unload(ollama_model)
            while ollama_model in [one.name for one in client.resident()]:
                time.sleep(0.05)


        def test_after_an_eviction(ask):
            ask("Still there")
        """,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A server with a model to show the plugin on; *label* stands before each figure.

    *keep_alive* is the lease that the model is left with; *more* says how to see the real thing.
    """

    client: Client
    model: str
    label: str = ""
    keep_alive: float = KEEP_ALIVE_S
    more: str = ""

    def say(self, *lines: str) -> None:
        """Print *lines*, each with the label where it holds a figure."""
        for line in lines:
            has_figure = re.search(r"\d", re.sub(r"\x1b\[[\d;]*m", "", line))
            print(f"{self.label if has_figure else ''}{line}", flush=True)

    def cool(self) -> None:
        """Take the model out of memory.

        Raises:
            WarmupError: it stays at work.
        """
        self.client.unload(self.model)
        if in_memory_after(self.client, {self.model}, UNLOAD_LIMIT_S):
            raise WarmupError(
                f"{self.model} is still in use {seconds(UNLOAD_LIMIT_S)} after it was to be "
                "unloaded. Come again when it is idle, or use --emulator."
            )


def show(settings: Settings, *, model: str | None, emulator: bool) -> bool:
    """Show the plugin on the user's Ollama, else on the emulator; return whether all tests passed.

    Raises:
        WarmupError: the server or the model that the user named cannot be used.
    """
    with ExitStack() as stack:
        stage = (
            _emulated(stack, "Without --emulator it is shown on a real Ollama.")
            if emulator
            else _stage(stack, settings, model)
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ollama-warmup-")))
        for name, text in FILES.items():
            suite = textwrap.dedent(text).lstrip().replace("MODEL", stage.model)
            (folder / name).write_text(suite, encoding="utf-8")
        chat, listed = "test_chat.py", ["--ollama-preload", stage.model]
        if stage.keep_alive != KEEP_ALIVE_S:
            listed.append(f"--ollama-keep-alive={stage.keep_alive:.0f}")
        runs = [
            ("without the plugin, cold", ["--ollama-off", chat]),
            ("with the plugin, cold", [*listed, chat]),
            ("with two workers, cold", [*listed, "-n", "2", chat]),
            ("after an eviction", [*listed, "test_eviction.py"]),
        ]
        if importlib.util.find_spec("xdist") is None:
            del runs[2]
            stage.say("Two workers are left out: pytest-xdist is not installed.")
        took = {}
        for title, args in runs:
            if chat in args:
                stage.cool()
            stage.say("", f"-- {title}", f"$ pytest {shlex.join(args)}")
            passed = _run(stage, folder, args)
            took[title] = _slowest(folder / REPORT) if passed else "failed"
        stage.say("", "The slowest test took")
        for title, slowest in took.items():
            stage.say(f"  {title:26} {slowest}")
        if stage.more:
            stage.say("", stage.more)
    return "failed" not in took.values()


def _run(stage: Stage, folder: Path, args: list[str]) -> bool:
    """Run the suite, say what it prints as it does, and return whether all of it passed."""
    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "no:cacheprovider"]
    command += ["--no-header", f"--junitxml={REPORT}", "-o", "junit_family=xunit2"]
    command += ["-p", "xdist"] if "-n" in args else []
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        command.append("--color=yes")
    # It writes for the same terminal.
    encoding = sys.stdout.encoding or "utf-8"
    # Nothing of the user's own suites may take part.
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == "OLLAMA_API_KEY" or not name.startswith(("OLLAMA_", "PYTEST_"))
    }
    environ |= {
        "OLLAMA_HOST": stage.client.host.as_variable,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONIOENCODING": encoding,
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [*command, *args],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding=encoding,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            # Where the report is, that only we read.
            if REPORT not in line:
                stage.say(line.rstrip("\n"))
        return process.wait() == 0
    except BaseException:
        try:
            # Ctrl-C in a terminal has reached it too, and it ends in order.
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    finally:
        process.stdout.close()


def _slowest(report: Path) -> str:
    times = {
        str(case.get("name")): float(case.get("time") or 0)
        for case in ElementTree.parse(report).iter("testcase")
    }
    # The one before it waits until the model is gone.
    times.pop("test_that_evicts", None)
    return seconds(max(times.values()))


def _stage(stack: ExitStack, settings: Settings, model: str | None) -> Stage:
    """Return the user's own Ollama with a model that is there, else the emulator."""
    host = settings.host
    try:
        client = Client(host, settings.api_key, settings.headers.value)
        stack.callback(client.close)
        version = client.wait_until_ready(settings.wait.value)
        name, size_there = _choose(client, model)
        loaded = find(client.resident(), ModelName.parse(name).key)
    except WarmupError as exc:
        if model is not None or settings.given_host.given_by == "option":
            raise
        why = f"No real Ollama was used: {exc}"
        if isinstance(exc, ServerUnreachable) and host.loopback and not shutil.which("ollama"):
            why += f" To get it: https://ollama.com/download, then 'ollama pull {SMALL}' (271 MB)."
        return _emulated(stack, why)
    keep_alive = KEEP_ALIVE_S
    if loaded is not None and loaded.lease_s is not None:
        # Taken out of memory to show cold tests, it comes back with no less than it had.
        left_s = rest_of(loaded.lease_s)
        keep_alive = left_s if left_s == FOREVER else max(keep_alive, left_s)
    stage = Stage(client, name, keep_alive=keep_alive)
    stage.say(
        f"Ollama {version} at {host.url} (from {host.source}) with {name} ({size(size_there)}), "
        "which stays in memory afterwards until its lease ends. Nothing is downloaded."
    )
    return stage


def _choose(client: Client, model: str | None) -> tuple[str, int]:
    """Return the name and size of the model that was named, else of the smallest there is."""
    host, stored = client.host, sorted(client.stored(), key=lambda one: one.size)
    if model is not None:
        one = find(stored, _key(model))
        if one is None:
            raise WarmupError(
                f"{model} (from --model) is not on {host.url} (from {host.source}), and this "
                f"downloads nothing. Run 'ollama-warmup pull {model}' first."
            )
        if not _completes(client, one.name):
            raise WarmupError(f"{model} (from --model) does not complete text. Name one that does.")
        return one.name, one.size
    # On another machine somebody else may be using it, and this unloads it.
    taken = set() if host.loopback else {one.name for one in client.resident()}
    for one in stored:
        if one.name not in taken and _completes(client, one.name):
            return one.name, one.size
    idle = "" if host.loopback else " and is not in use"
    raise WarmupError(
        f"{host.url} (from {host.source}) has no model that completes text{idle}. "
        f"Run 'ollama pull {SMALL}' (271 MB)."
    )


def _key(model: str) -> str:
    try:
        return ModelName.parse(model).key
    except ValueError as exc:
        raise BadSpec(model, "--model", f"{exc}; expected a model name such as {SMALL}") from None


def _completes(client: Client, name: str) -> bool:
    info = None if is_cloud(name) else client.show(name)
    # Servers before v0.6.4 do not tell what a model can do.
    return (
        info is not None
        and not info.remote_host
        and (info.capabilities is None or "completion" in info.capabilities)
    )


def _emulated(stack: ExitStack, more: str) -> Stage:
    played = ScriptedModel(SMALL, size=271_000_000, present=True, load_s=1.5, eval_s=0.02)
    emulator = stack.enter_context(Emulator([played]))
    client = Client(read_host(emulator.url, "the demo"))
    stack.callback(client.close)
    stage = Stage(client, SMALL, LABEL, more=more)
    stage.say(
        f"An emulator plays Ollama and {SMALL}, which takes 1.5 s to load there: no figure is real."
    )
    return stage
