"""``ollama-warmup demo``: run a small suite without and with the plugin, and compare."""

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

from pytest_ollama_warmup.cli.commands import in_memory_after
from pytest_ollama_warmup.cli.status import keep_alive
from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.config.spec import FOREVER
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.errors import (
    BadSpec,
    OllamaNotFound,
    ServerError,
    ServerStartFailed,
    ServerUnreachable,
    WarmupError,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.names import ModelName, is_cloud
from pytest_ollama_warmup.ollama.process import (
    COMMAND,
    ManagedServer,
    find_binary,
    free_port,
    tuned,
)
from pytest_ollama_warmup.ollama.responses import find
from pytest_ollama_warmup.text import seconds, size

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings

# The smallest current model of Ollama's library that completes text.
SMALL = "smollm2:135m"
PULL_SMALL = f"'ollama pull {SMALL}' (271 MB)"
# Models that people use are larger; these are made for tests.
TOY_BYTES = 50_000_000
START_LIMIT_S = 20.0
LOAD_LIMIT_S = 900.0
UNLOAD_LIMIT_S = 30.0
# Ctrl-C in a terminal reaches pytest too; this is how long it may take to end.
END_LIMIT_S = 2.0
KEEP_ALIVE_S = 600.0
# In the emulator.
LOAD_S = 1.0
EMULATED = "[emulator] "
TOY = "[toy model] "
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
                # Answers of one length: what differs is the load.
                options = {"num_predict": 8}
                client.load(ollama_model, "generate", prompt=question, options=options, limit_s=120)

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
    """A server and a model to run the demo on; *label* stands before each figure.

    *keep_alive* is what the model is left with, in seconds; *more* is the demo's last line.
    """

    client: Client
    model: str
    label: str = ""
    keep_alive: float = KEEP_ALIVE_S
    more: str = ""

    @property
    def emulated(self) -> bool:
        """Whether the server is the emulator."""
        return self.label == EMULATED

    def say(self, *lines: str) -> None:
        """Print *lines*, with the label before each that has a figure."""
        for line in lines:
            has_figure = re.search(r"\d", re.sub(r"\x1b\[[\d;]*m", "", line))
            print(f"{self.label if has_figure else ''}{line}", flush=True)

    def cool(self) -> None:
        """Unload the model.

        Raises:
            WarmupError: another client keeps using it.
        """
        self.client.unload(self.model)
        if in_memory_after(self.client, {self.model}, UNLOAD_LIMIT_S):
            raise WarmupError(
                f"{self.model} is still in use {seconds(UNLOAD_LIMIT_S)} after unloading was "
                "requested. Try again when it is idle, or use --emulator."
            )


def show(settings: Settings, *, model: str | None, emulator: bool) -> bool:
    """Find a server and run the demo on it; return whether all tests passed.

    Raises:
        WarmupError: the server or the model that the user named cannot be used.
    """
    with ExitStack() as stack:
        return run_on(find_stage(stack, settings, model=model, emulator=emulator))


def find_stage(
    stack: ExitStack, settings: Settings, *, model: str | None = None, emulator: bool = False
) -> Stage:
    """Return a reachable Ollama, otherwise a private one that ends with *stack*, or the emulator.

    Raises:
        WarmupError: the server or the model that the user named cannot be used.
    """
    if emulator:
        return _emulated(stack, "Leave out --emulator to run the demo on a real Ollama.")
    try:
        return _real(stack, settings, model)
    except WarmupError as exc:
        if model is not None or settings.given_host.given_by == "option":
            raise
        why = f"No real Ollama was used: {exc}".replace("\n", " ")
        if isinstance(exc, ServerUnreachable) and settings.host.loopback:
            why += f" To install it: https://ollama.com/download, then {PULL_SMALL}."
        return _emulated(stack, why)


def run_on(stage: Stage) -> bool:
    """Run the suite without and with the plugin, and compare; return whether all tests passed."""
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
        stage.say("No run with two workers: pytest-xdist is not installed.")
    if not stage.emulated:
        stage.say("Loading it once, so that each run finds its file in the disk cache ...")
        stage.client.load(stage.model, "generate", prompt="", options={}, limit_s=LOAD_LIMIT_S)
    rows, passed = [], True
    with tempfile.TemporaryDirectory(prefix="ollama-warmup-") as name:
        folder = Path(name)
        for file, text in FILES.items():
            suite = textwrap.dedent(text).lstrip().replace("MODEL", stage.model)
            (folder / file).write_text(suite, encoding="utf-8")
        for title, args in runs:
            if chat in args:
                stage.cool()
            stage.say("", f"-- {title}", f"$ pytest {shlex.join(args)}")
            begin = clock.monotonic()
            if _run(stage, folder, args):
                whole = seconds(clock.monotonic() - begin)
                rows.append((title, _slowest(folder / REPORT), whole))
            else:
                rows.append((title, "failed", ""))
                passed = False
    # The head has no figure, so no label either.
    stage.say("", f"{' ' * len(stage.label)}{'':26} {'slowest test':14} whole run")
    for title, slowest, whole in rows:
        stage.say(f"{title:26} {slowest:14} {whole}".rstrip())
    stage.say(
        "",
        "The plugin loads the model before the first test instead of during it.",
        "The whole run takes about as long, or less: pytest starts while the model loads.",
    )
    if stage.more:
        stage.say("", stage.more)
    return passed


def _run(stage: Stage, folder: Path, args: list[str]) -> bool:
    """Run pytest on the suite, pass on what it prints, and return whether all tests passed."""
    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "no:cacheprovider"]
    command += ["--no-header", f"--junitxml={REPORT}", "-o", "junit_family=xunit2"]
    command += ["-p", "xdist"] if "-n" in args else []
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        command.append("--color=yes")
    # pytest writes for the same terminal, next to the label.
    encoding = sys.stdout.encoding or "utf-8"
    width = shutil.get_terminal_size().columns - len(stage.label)
    # Options of the user's own suites must not take part.
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == "OLLAMA_API_KEY" or not name.startswith(("OLLAMA_", "PYTEST_"))
    }
    environ |= {
        "OLLAMA_HOST": stage.client.host.as_variable,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONIOENCODING": encoding,
        "COLUMNS": str(width),
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
            # The line that says where the report is, which only we read.
            if REPORT not in line:
                stage.say(line.rstrip("\n"))
        return process.wait() == 0
    except BaseException:
        try:
            # Ctrl-C in a terminal has reached pytest too, which then cleans up.
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
    # This one waits until the model is unloaded.
    times.pop("test_that_evicts", None)
    return seconds(max(times.values()))


def _real(stack: ExitStack, settings: Settings, model: str | None) -> Stage:
    """Return a stage on the user's Ollama if it is running, otherwise on a private one."""
    host = settings.host
    client = Client(host, settings.api_key, settings.headers.value)
    stack.callback(client.close)
    try:
        version = client.wait_until_ready(settings.wait.value)
    except ServerError as exc:
        if settings.given_host.given_by == "option":
            raise
        try:
            command = find_binary(COMMAND, os.environ)
        except OllamaNotFound:
            raise exc from None
        client, version = _private(stack, command)
        where = f"started from {command[0]}"
        after = "The server uses a free port and stops with the demo. "
    else:
        where = f"at {host.url} (from {host.source})"
        after = "It stays loaded after the demo until its keep-alive ends. "
    name, bytes_there = _choose(client, model)
    loaded = find(client.resident(), ModelName.parse(name).key)
    keep_alive_s = KEEP_ALIVE_S
    if loaded is not None and loaded.lease_s is not None:
        # The demo unloads the model, and must not leave it with a shorter keep-alive than before.
        left_s = keep_alive(loaded.lease_s)
        keep_alive_s = left_s if left_s == FOREVER else max(keep_alive_s, left_s)
    toy = bytes_there < TOY_BYTES
    stage = Stage(client, name, TOY if toy else "", keep_alive_s)
    stage.say(
        f"Ollama {version} {where}.",
        f"Model: {name} ({size(bytes_there)}).",
        f"{after}Nothing is downloaded.",
    )
    if toy:
        stage.say("This is a toy model for tests. Loading a real one takes seconds to minutes.")
    return stage


def _private(stack: ExitStack, command: list[str]) -> tuple[Client, str]:
    """Start ``ollama serve`` with the user's models; return a client of it and its version.

    Raises:
        WarmupError: it does not start.
    """
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ollama-warmup-"))
    environ = tuned(os.environ, workers=2, models=1, context_length=None, port=free_port())
    server = ManagedServer(command, environ, Path(folder) / "serve.log")
    client = Client(read_host(server.host.url, f"a private '{COMMAND}'"))
    stack.callback(client.close)
    try:
        stack.enter_context(server)
        return client, server.wait_until_ready(client, START_LIMIT_S)
    except ServerStartFailed as exc:
        words = f" ({exc.lines[-1]})" if exc.lines else ""
        raise WarmupError(f"'{COMMAND}' {exc.brief}{words}.") from exc


def _choose(client: Client, model: str | None) -> tuple[str, int]:
    """Return the name and size of the model that was named, else of the smallest there is."""
    host, stored = client.host, sorted(client.stored(), key=lambda one: one.size)
    if model is not None:
        one = find(stored, _key(model))
        if one is None:
            raise WarmupError(
                f"{model} (from --model) is not on {host.url} (from {host.source}), and the demo "
                f"downloads nothing. Run 'ollama-warmup pull {model}' first."
            )
        if not _completes(client, one.name):
            raise WarmupError(
                f"{model} (from --model) does not complete text. Name a model that does."
            )
        return one.name, one.size
    # The demo unloads the model; on another machine somebody else may be using it.
    taken = set() if host.loopback else {one.name for one in client.resident()}
    for one in stored:
        if one.name not in taken and _completes(client, one.name):
            return one.name, one.size
    idle = "" if host.loopback else " and is not in use"
    raise WarmupError(
        f"{host.url} (from {host.source}) has no model that completes text{idle}. Run {PULL_SMALL}."
    )


def _key(model: str) -> str:
    try:
        return ModelName.parse(model).key
    except ValueError as exc:
        raise BadSpec(model, "--model", f"{exc}; expected a model name such as {SMALL}") from None


def _completes(client: Client, name: str) -> bool:
    info = None if is_cloud(name) else client.show(name)
    # Servers before v0.6.4 do not say what a model can do.
    return (
        info is not None
        and not info.remote_host
        and (info.capabilities is None or "completion" in info.capabilities)
    )


def _emulated(stack: ExitStack, more: str) -> Stage:
    model = ScriptedModel(SMALL, size=271_000_000, present=True, load_s=LOAD_S, eval_s=0.02)
    emulator = stack.enter_context(Emulator([model]))
    client = Client(read_host(emulator.url, "the demo"))
    stack.callback(client.close)
    stage = Stage(client, SMALL, EMULATED, more=more)
    stage.say(
        f"An emulator stands in for Ollama; loading {SMALL} takes {seconds(LOAD_S)}.",
        "No figure below is real.",
    )
    return stage
