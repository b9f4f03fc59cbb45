"""The main job, shown: the first test cold and warm, in one process and with two workers.

Runs on a reachable Ollama, else on a private one from ``ollama`` on PATH, else on one that is built
once; only where that cannot be had on the emulator, and then says so in every line with a figure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_ollama_warmup.errors import WarmupError
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.host import parse_host
from tests.live.provide import Missing, provide
from tests.live.registry import Registry
from tests.live.server import OPENER, RealServer

if TYPE_CHECKING:
    from collections.abc import Callable

SUITE = """
    import json, os, time, urllib.request
    import pytest

    @pytest.mark.requires_model("MODEL")
    @pytest.mark.parametrize("question", ["Hello", "Who are you", "What now", "Good bye"])
    def test_answers(question, ollama_host, ollama_model):
        body = {"model": ollama_model, "prompt": question, "stream": False,
                "options": {"num_predict": 16}}
        request = urllib.request.Request(ollama_host + "/api/generate", json.dumps(body).encode())
        begin = time.perf_counter()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            assert json.load(answer)["done"]
        print(f"ANSWERED {time.perf_counter() - begin:.3f}")
"""


@dataclass(frozen=True)
class Stage:
    """A server to show the main job on; *cool* takes the model out of memory.

    *absent* says that the model is still to be pulled, *label* stands before each figure.
    """

    url: str
    model: str
    preload: str
    cool: Callable[[], None]
    label: str = ""
    absent: bool = True


def main() -> int:
    """Show the main job; the exit code is 0 when all tests passed."""
    with ExitStack() as stack:
        stage = reachable() or private(stack) or emulated(stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        suite = textwrap.dedent(SUITE).replace("MODEL", stage.model)
        (folder / "test_demo.py").write_text(suite, encoding="utf-8")
        preload = ["--ollama-preload", stage.preload]
        shows = [("with the plugin, nothing there yet", preload, False)] if stage.absent else []
        shows += [
            ("without it, cold", ["--ollama-off"], True),
            ("with it, cold", preload, True),
            ("with it and two workers, cold", [*preload, "-n", "2"], True),
        ]
        firsts, failed = [], False
        for title, args, cold in shows:
            if cold:
                stage.cool()
            code, out = show(stage, folder, title, args)
            failed = failed or code != 0
            if (first := re.search(r"ANSWERED ([\d.]+)", out)) is not None:
                firsts.append((title, float(first[1])))
        cold_s = dict(firsts)["without it, cold"]
        say(stage, "", "The answer to the first test took")
        for title, first_s in firsts:
            say(stage, f"  {title:36} {first_s:.3f} s   {cold_s / first_s:4.1f} × as fast as cold")
    return int(failed)


def show(stage: Stage, folder: Path, title: str, args: list[str]) -> tuple[int, str]:
    """Run the suite, print what a user would see, and return the exit code and all output."""
    shown = " ".join(f'"{arg}"' if " " in arg else arg for arg in args)
    say(stage, "", f"── {title}", f"$ pytest {shown}")
    command = [sys.executable, "-m", "pytest", "-rP", "-p", "ollama_warmup"]
    if "-n" in args:
        command += ["-p", "xdist"]
    environ = {key: value for key, value in os.environ.items() if key != "OLLAMA_PRELOAD_MODELS"}
    environ |= {"OLLAMA_HOST": stage.url, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environ["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run(
        [*command, *args],
        cwd=folder,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    # Not the captured answers, which -rP adds for us to read.
    seen = re.sub(
        r"(?s)=+ PASSES =+\n.*?(?=^-+ ollama models|^=+ .*(?:passed|failed))",
        "",
        done.stdout,
        flags=re.M,
    )
    say(stage, *seen.splitlines(), *done.stderr.splitlines())
    return done.returncode, done.stdout


def say(stage: Stage, *lines: str) -> None:
    """Print *lines*, each with the stage's label where it holds a figure."""
    for line in lines:
        print(
            f"[{stage.label}] {line}" if stage.label and re.search(r"\d", line) else line,
            flush=True,
        )


def reachable() -> Stage | None:
    """Return the user's own Ollama, if it runs and has a model to show; nothing is downloaded."""
    host = parse_host(os.environ.get("OLLAMA_HOST", "127.0.0.1:11434"), "OLLAMA_HOST")
    client = Client(host, os.environ.get("OLLAMA_API_KEY", ""))
    try:
        version = client.version(timeout_s=2.0)
        busy = {one.name for one in client.resident()}
    except WarmupError:
        return None
    finally:
        client.close()
    tags = ask(f"{host.url}/api/tags")["models"]
    names = [one["name"] for one in sorted(tags, key=lambda one: one["size"])]
    # Not one that somebody uses: the demo unloads it.
    name = next((one for one in names if one not in busy and completes(host.url, one)), None)
    if name is None:
        print(f"Ollama {version} at {host.url} has no idle model that completes text; not used.")
        return None
    print(f"Using Ollama {version} at {host.url} and its smallest idle model, {name}.")

    def cool() -> None:
        ask(f"{host.url}/api/generate", {"model": name, "keep_alive": 0})
        while any(one["name"] == name for one in ask(f"{host.url}/api/ps")["models"]):
            time.sleep(0.05)

    return Stage(host.url, name, name, cool, absent=False)


def completes(url: str, model: str) -> bool:
    """Return whether a model of the server generates text there, not in the cloud."""
    shown = ask(f"{url}/api/show", {"model": model})
    return "completion" in shown.get("capabilities", ()) and not shown.get("remote_host")


def ask(url: str, body: dict[str, object] | None = None) -> Any:
    """Return the JSON answer to a GET, or to a POST of *body*."""
    data = None if body is None else json.dumps(body).encode()
    with OPENER.open(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def private(stack: ExitStack) -> Stage | None:
    """Return a private server with a registry of tiny models, built first if need be."""
    on_path = shutil.which("ollama")
    try:
        parts = provide(installed=Path(on_path) if on_path else None)
    except Missing as exc:
        print(f"No real Ollama can be had: {exc}")
        return None
    print(
        f"Using a private server from {parts.ollama if on_path else 'the Ollama built for tests'}."
    )
    server = stack.enter_context(RealServer(parts.ollama))
    # Slow enough to be seen: the model has 1.7 MB.
    registry = stack.enter_context(Registry(parts.models, rate=1e6))
    model = registry.name("completion")

    def cool() -> None:
        if any(one["name"] == model for one in server.get("/api/tags")["models"]):
            server.unload(model)

    return Stage(server.url, model, f"{model},insecure=true", cool)


def emulated(stack: ExitStack) -> Stage:
    """Return the emulator, which plays a model of 1.3 MB that takes 2 s to load."""
    print("Showing the emulator, which only plays a server: its figures are not real.")
    model = ScriptedModel("llama3.2:1b", size=1_300_000, pull_rate=1_000_000, load_s=2.0)
    emulator = stack.enter_context(Emulator([model]))
    return Stage(
        emulator.url,
        "llama3.2:1b",
        "llama3.2:1b",
        lambda: emulator.unload("llama3.2:1b"),
        "emulator",
    )


if __name__ == "__main__":
    raise SystemExit(main())
