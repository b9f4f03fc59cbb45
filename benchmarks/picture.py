"""Draw the README's picture of a run, light and dark, from a real run of pytest.

Run as ``python benchmarks/picture.py [--emulator | --private] [--model NAME]`` where the plugin and
the ``ollama`` package are installed. By default it uses the server of ``OLLAMA_HOST``, where the
model must be local, and unloads the model first. Writes ``docs/pictures/run-light.svg`` and
``run-dark.svg``.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

# Run as a script, the top of the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOP = Path(__file__).parents[1]
COLUMNS = 80
RUN_LIMIT_S = 600.0
PICTURES = TOP / "docs" / "pictures"
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}
# The picture shows these in place of the temporary folder and of the server's port.
FOLDER, URL = "/home/you/chatbot", "http://127.0.0.1:11434"
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
FILES = {
    "pytest.ini": "[pytest]\n",
    "test_chat.py": """
        import pytest

        pytestmark = pytest.mark.requires_model("MODEL")


        @pytest.mark.parametrize("question", ["Who", "What", "Where", "When", "Why"])
        def test_answers(ollama_client, ollama_model, question):
            reply = ollama_client.generate(
                ollama_model, f"{question} are you?", options={"num_predict": 4}
            )
            assert reply.eval_count
        """,
    "test_prompt.py": """
        import pytest


        @pytest.mark.parametrize("number", range(12))
        def test_template(number):
            assert f"{number}" == str(number)
        """,
}


def run_in_terminal(command: Sequence[str], folder: Path, host: str) -> str:
    """Run *command* in a pseudo-terminal and return everything it wrote there."""
    from tests.terminals import run

    environ = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "PYTEST_ADDOPTS")}
    environ |= {"OLLAMA_HOST": host, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    # Plugins that happen to be installed are not part of the picture.
    environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run(list(command), folder, environ, COLUMNS, limit_s=RUN_LIMIT_S).raw


def final_screen(written: str) -> str:
    """Return what a terminal shows after *written*: erased and overwritten lines are gone.

    Knows the sequences that pytest and rich write. Colours stay as they are.
    """
    lines, row = [""], 0
    for token in re.findall(r"\r?\n|\r|\x1b\[\??\d*[AKhl]|[^\r\n\x1b]+|\x1b", written):
        if token.endswith("\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.startswith("\x1b[") and token[-1] in "hl":
            continue
        elif token.startswith("\x1b[") and token.endswith("A"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\r" or token.endswith("K"):
            lines[row] = ""
        else:
            lines[row] += token
    return "\n".join(lines).rstrip()


def draw(screen: str, title: str, theme: str) -> str:
    """Return *screen*, text with colours, as an SVG that loads nothing from elsewhere."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title=title, theme=THEMES[theme], unique_id=f"run-{theme}")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONTS)
    # The frame is white for dark pages, and cannot be seen on light ones.
    return svg.replace("rgba(255,255,255,0.35)", "rgba(128,128,128,0.5)") + "\n"


@contextmanager
def server_for(given: argparse.Namespace) -> Iterator[str]:
    """Yield the URL of a server on which the model is not loaded."""
    if given.emulator:
        rate, load_s, eval_s = 400e6, 1.5, 0.1
        model = ScriptedModel(
            given.model, size=1_300_000_000, pull_rate=rate, load_s=load_s, eval_s=eval_s
        )
        with Emulator([model]) as emulator:
            yield emulator.url
    elif given.private:
        from benchmarks.early import MODEL, real_server

        with real_server() as server:
            server.post("/api/copy", {"source": MODEL, "destination": given.model})
            yield server.url
    else:
        host = parse_host(os.environ.get("OLLAMA_HOST", ""), "OLLAMA_HOST")
        client = Client(host)
        client.unload(given.model, limit_s=60)
        client.close()
        yield host.url


def main() -> None:
    """Run the suite, and write both pictures."""
    parser = argparse.ArgumentParser(description="Draw the README's picture of a run.")
    parser.add_argument("--emulator", action="store_true", help="Use an emulated Ollama.")
    parser.add_argument(
        "--private",
        action="store_true",
        help="Use Gemma 3 270M on a private Ollama, built once as for `tox -e live`.",
    )
    parser.add_argument("--model", default="gemma3:270m", help="Default: gemma3:270m.")
    given = parser.parse_args()
    shown = ["pytest", *(["--ollama-pull=missing"] if given.emulator else [])]
    with server_for(given) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file, text in FILES.items():
            text = textwrap.dedent(text).lstrip("\n").replace("MODEL", given.model)
            (folder / file).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", *shown[1:]]
        screen = final_screen(run_in_terminal(command, folder, url))
    screen = screen.replace(str(folder), FOLDER).replace(url, URL)
    title = "pytest on an emulated Ollama" if given.emulator else "pytest"
    PICTURES.mkdir(exist_ok=True)
    for theme in THEMES:
        path = PICTURES / f"run-{theme}.svg"
        path.write_text(draw(f"$ {' '.join(shown)}\n{screen}", title, theme), encoding="utf-8")
        print(f"{path.relative_to(TOP)} written")


if __name__ == "__main__":
    main()
