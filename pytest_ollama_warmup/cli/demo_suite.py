"""The test suite that ``ollama-warmup demo`` runs, without and with the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Ctrl-C in a terminal reaches pytest too; this is how long it may take to end.
END_LIMIT_S = 2.0

FILES = {
    "pytest.ini": "[pytest]\n",
    "conftest.py": """
        import os
        from collections import Counter

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


        SECONDS = Counter()


        def pytest_runtest_logreport(report):
            SECONDS[report.nodeid] += report.duration


        def pytest_unconfigure(config):
            # xdist's controller hears of all tests, each worker of its own.
            if not hasattr(config, "workerinput"):
                # This one waits until the model is unloaded.
                SECONDS.pop("test_eviction.py::test_that_evicts", None)
                slowest = max(SECONDS.values(), default=0)
                (config.rootpath / "slowest.txt").write_text(str(slowest))
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
            while ollama_model in [one.name for one in client.loaded_models()]:
                time.sleep(0.05)


        def test_after_an_eviction(ask):
            ask("Still there")
        """,
}


def write(folder: Path, model: str) -> None:
    """Write the suite, whose tests use *model*, into an empty folder."""
    for name, text in FILES.items():
        source = textwrap.dedent(text).lstrip().replace("MODEL", model)
        (folder / name).write_text(source, encoding="utf-8")


def run(folder: Path, args: list[str], ollama_host: str) -> float | None:
    """Run pytest in *folder*, in the same terminal; return how long the slowest test took.

    In seconds; None if a test failed.
    """
    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "no:cacheprovider"]
    command += ["--no-header", *(["-p", "xdist"] if "-n" in args else []), *args]
    # Options of the user's own suites must not take part.
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == "OLLAMA_API_KEY" or not name.startswith(("OLLAMA_", "PYTEST_"))
    }
    environ["OLLAMA_HOST"] = ollama_host
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        failed = process.wait() != 0
    except BaseException:
        try:
            # Ctrl-C in a terminal has reached pytest too, which then cleans up.
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    return None if failed else float((folder / "slowest.txt").read_text("utf-8"))
