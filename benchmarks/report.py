"""Draw the picture of a report, light and dark, from a run of pytest on the emulator.

Run as ``python benchmarks/report.py`` where the plugin, jinja2, pytest-xdist and Chromium are
installed. Writes ``docs/pictures/report-light.png`` and ``report-dark.png``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.browser import Browser

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1180, 912
# The picture shows this in place of the emulator's address.
URL = "http://127.0.0.1:11434"
MODELS = [
    ScriptedModel("llama3.2:1b", size=1_321_000_000, pull_rate=4e8, load_s=1.1, eval_s=0.1),
    ScriptedModel("qwen3:0.6b", size=523_000_000, pull_rate=2e8, load_s=0.6, eval_s=0.1),
    ScriptedModel("gemma3:270m", size=292_000_000, present=True, load_s=0.4, eval_s=0.1),
    ScriptedModel("mistral:7b", size=4_113_000_000, present=True, load_s=1.5, eval_s=0.2),
]
SUITE = """
    import json, os, time, urllib.request
    import pytest

    def ask(model):
        body = json.dumps({"model": model, "prompt": "Hi", "stream": False}).encode()
        request = urllib.request.Request(os.environ["OLLAMA_HOST"] + "/api/generate", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["done"]

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("question", range(40))
    def test_answers(question):
        ask("llama3.2:1b")

    @pytest.mark.parametrize("number", range(40))
    def test_parses(number):
        time.sleep(0.02)

    @pytest.mark.requires_model("qwen3:0.6b")
    @pytest.mark.parametrize("tool", range(24))
    def test_calls(tool):
        ask("qwen3:0.6b")
        assert tool != 5

    def test_compares_with_a_larger_model():
        time.sleep(0.3)
        ask("mistral:7b")

    @pytest.mark.requires_model("gemma3:270m")
    @pytest.mark.parametrize("tone", range(24))
    def test_tone(tone):
        ask("gemma3:270m")

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("question", range(40))
    def test_summarizes(question):
        ask("llama3.2:1b")
"""


def run(folder: Path) -> Path:
    """Run the suite and return its report."""
    (folder / "test_chat.py").write_text(textwrap.dedent(SUITE), "utf-8")
    with Emulator(MODELS) as emulator:
        command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "-p", "xdist"]
        environ = {
            **{name: value for name, value in os.environ.items() if "OLLAMA" not in name},
            "OLLAMA_HOST": emulator.url,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        options = ["--ollama-report=ollama.html", "--ollama-pull=missing", "-n3"]
        subprocess.run([*command, *options, "test_chat.py"], cwd=folder, env=environ, check=False)
        report = folder / "ollama.html"
        report.write_text(report.read_text("utf-8").replace(emulator.url, URL), "utf-8")
    return report


def main() -> None:
    """Draw both pictures."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        report = run(folder)
        with Browser(folder / "profile") as browser:
            for scheme in ("light", "dark"):
                browser.show(report, WIDTH, dark=scheme == "dark", height=HEIGHT)
                browser.picture(PICTURES / f"report-{scheme}.png", whole=False)


if __name__ == "__main__":
    main()
