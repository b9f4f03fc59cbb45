"""``ollama-warmup demo``: run a small suite without and with the plugin, and compare."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import tempfile
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.cli import demo_suite
from pytest_ollama_warmup.cli.commands import in_memory_after
from pytest_ollama_warmup.cli.status import keep_alive
from pytest_ollama_warmup.config.model_specs import FOREVER
from pytest_ollama_warmup.config.options import read_host
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
from pytest_ollama_warmup.text import origin, seconds, size

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
KEEP_ALIVE_S = 600.0
# Of the emulator.
LOAD_S = 1.0
EMULATED = "emulated"


class Shown(NamedTuple):
    """Whether all tests of the demo passed, and whether it ran on the emulator."""

    passed: bool
    emulated: bool


class _Choice(NamedTuple):
    """The server and the model that the demo runs on; *label* says if they are no usual ones.

    *keep_alive* is what the model is left with, in seconds; *more* is the demo's last line.
    """

    client: Client
    model: str
    label: str = ""
    keep_alive: float = KEEP_ALIVE_S
    more: str = ""


class _Row(NamedTuple):
    """How long a run took, in seconds; *slowest* is its slowest test, None where one failed."""

    title: str
    slowest: float | None
    whole: float


def show(settings: Settings, *, model: str | None = None, emulator: bool = False) -> Shown:
    """Run a suite without and with the plugin, and compare: on a reachable or installed Ollama.

    The emulator is used where there is none, and on demand.

    Raises:
        WarmupError: the server or the model that the user named cannot be used.
    """
    with ExitStack() as stack:
        choice = _choose(stack, settings, model, emulator=emulator)
        passed = _compare(choice)
        if choice.more:
            _say("", choice.more)
        return Shown(passed, choice.label == EMULATED)


def _choose(stack: ExitStack, settings: Settings, model: str | None, *, emulator: bool) -> _Choice:
    if emulator:
        return _emulated(stack, "Leave out --emulator to run the demo on a real Ollama.")
    try:
        return _real(stack, settings, model)
    except WarmupError as exc:
        if model is not None or settings.given_host.given_by == "option":
            raise
        _say(f"No real Ollama is used: {exc.message}".replace("\n", " "), "")
        absent = isinstance(exc, ServerUnreachable) and settings.host.loopback
        install = f"To install Ollama: https://ollama.com/download, then {PULL_SMALL}."
        return _emulated(stack, install if absent else "")


def _compare(choice: _Choice) -> bool:
    """Run the suite in each way, and show how long it took; return whether all tests passed."""
    if choice.label != EMULATED:
        _say("Loading it once, so that each run finds its file in the disk cache ...")
        choice.client.load(choice.model, "generate", prompt="", options={}, limit_s=LOAD_LIMIT_S)
    label = f" ({choice.label})" if choice.label else ""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ollama-warmup-") as name:
        folder = Path(name)
        demo_suite.write(folder, choice.model)
        for title, args in _runs(choice).items():
            if "test_chat.py" in args:
                _cool(choice)
            _say("", f"-- {title}{label}", f"$ pytest {shlex.join(args)}")
            begin = clock.monotonic()
            slowest = demo_suite.run(folder, args, choice.client.host.as_variable)
            rows.append(_Row(title, slowest, clock.monotonic() - begin))
    _show_table(rows, label)
    return all(row.slowest is not None for row in rows)


def _runs(choice: _Choice) -> dict[str, list[str]]:
    chat, listed = "test_chat.py", ["--ollama-preload", choice.model]
    if choice.keep_alive != KEEP_ALIVE_S:
        listed.append(f"--ollama-keep-alive={choice.keep_alive:.0f}")
    runs = {
        "without the plugin, cold": ["--ollama-off", chat],
        "with the plugin, cold": [*listed, chat],
        "with two workers, cold": [*listed, "-n", "2", chat],
        "after an eviction": [*listed, "test_eviction.py"],
    }
    if importlib.util.find_spec("xdist") is None:
        del runs["with two workers, cold"]
        _say("No run with two workers: pytest-xdist is not installed.")
    return runs


def _show_table(rows: list[_Row], label: str) -> None:
    _say("", f"{'':26} {'slowest test':14} whole run")
    for title, slowest, whole in rows:
        figures = "failed" if slowest is None else f"{seconds(slowest):14} {seconds(whole):9}"
        _say(f"{title:26} {figures}{label}".rstrip())
    without, with_it, *others = (row.slowest for row in rows)
    if without is None or with_it is None or None in others:
        return
    _say(
        "",
        f"The slowest test took {seconds(without)} without the plugin and {seconds(with_it)} with "
        f"it{label}. The plugin loads the model before the first test, and again between two tests "
        "after an eviction.",
        "Each whole run includes the start of Python and one load. In a cold run with the plugin, "
        "the load overlaps with the start of "
        f"pytest{'; starting workers takes time of its own' if others[1:] else ''}.",
    )
    if with_it >= without:
        _say("Other work kept this machine busy. Run the demo again when it is idle.")


def _say(*lines: str) -> None:
    """Print *lines*, the long ones broken between words."""
    width = shutil.get_terminal_size().columns
    for line in lines:
        # What is copied, such as an address or a path, stays in one piece.
        wrapped = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        print(line if len(line) <= width else "\n".join(wrapped), flush=True)


def _cool(choice: _Choice) -> None:
    """Unload the model.

    Raises:
        WarmupError: another client keeps using it.
    """
    choice.client.unload(choice.model)
    if in_memory_after(choice.client, {choice.model}, UNLOAD_LIMIT_S):
        raise WarmupError(
            f"{choice.model} is still in use {seconds(UNLOAD_LIMIT_S)} after unloading was "
            "requested. Try again when it is idle, or use --emulator."
        )


def _real(stack: ExitStack, settings: Settings, model: str | None) -> _Choice:
    """Choose the user's Ollama if it is running, otherwise start a private one."""
    host = settings.host
    client = Client(host, settings.api_key, settings.headers.value)
    stack.callback(client.close)
    try:
        version = client.wait_until_ready(settings.wait.value, refused_s=settings.refused_s)
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
        where = f"at {host.url} ({origin(host.source)})"
        after = "It stays loaded after the demo until its keep-alive ends. "
    name, bytes_there = _model_on(client, model)
    loaded = find(client.loaded_models(), ModelName.parse(name).key)
    keep_alive_s = KEEP_ALIVE_S
    if loaded is not None and loaded.keep_alive_s is not None:
        # The demo unloads the model, and must not leave it with a shorter keep-alive than before.
        left_s = keep_alive(loaded.keep_alive_s)
        keep_alive_s = left_s if left_s == FOREVER else max(keep_alive_s, left_s)
    toy = bytes_there < TOY_BYTES
    _say(
        f"Ollama {version} {where}.",
        f"Model: {name} ({size(bytes_there)}).",
        f"{after}Nothing is downloaded.",
    )
    if toy:
        _say("This is a toy model for tests. Loading a real one takes seconds to minutes.")
    return _Choice(client, name, "toy model" if toy else "", keep_alive_s)


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


def _model_on(client: Client, model: str | None) -> tuple[str, int]:
    """Return the name and size of the model that was named, else of the smallest there is."""
    host, local_models = client.host, sorted(client.local_models(), key=lambda entry: entry.size)
    # The demo unloads the model; on another machine somebody else may be using it.
    taken = set() if host.loopback else {loaded.name for loaded in client.loaded_models()}
    if model is not None:
        match = find(local_models, _key(model))
        if match is None:
            raise WarmupError(
                f"{model} (from --model) is not on {host.url} ({origin(host.source)}), and the "
                f"demo downloads nothing. Run 'ollama-warmup pull {model}' first."
            )
        if not _completes(client, match.name):
            raise WarmupError(
                f"{model} (from --model) does not complete text. Name a model that does."
            )
        if match.name in taken:
            raise WarmupError(
                f"{model} (from --model) is loaded on {host.url} ({origin(host.source)}), where "
                "somebody may be using it. Name another model, or unload it first."
            )
        return match.name, match.size
    for candidate in local_models:
        if candidate.name not in taken and _completes(client, candidate.name):
            return candidate.name, candidate.size
    idle = "" if host.loopback else " and is not in use"
    raise WarmupError(
        f"{host.url} ({origin(host.source)}) has no model that completes text{idle}. "
        f"Run {PULL_SMALL}."
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


def _emulated(stack: ExitStack, more: str) -> _Choice:
    # Its name says in each line of pytest's output what it is.
    model = ScriptedModel(EMULATED, size=271_000_000, present=True, load_s=LOAD_S, eval_s=0.02)
    emulator = stack.enter_context(Emulator([model]))
    client = Client(read_host(emulator.url, "the demo"))
    stack.callback(client.close)
    _say(
        f"An emulator stands in for Ollama; loading its model takes {seconds(LOAD_S)}.",
        "No figure below is real.",
    )
    return _Choice(client, model.name, EMULATED, more=more)
