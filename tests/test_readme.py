"""The README works as pasted: every block of code runs, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from dataclasses import replace
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pytest_ollama_warmup
from benchmarks.picture import THEMES, draw, final_screen
from tests.conftest import LLAMA, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator


TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text("utf-8")
PICTURES = TOP / "docs" / "pictures"
# These download packages. The first is done by links to the packages that are installed here, and
# the others are compared only: they run these tests.
INSTALLS = [
    'pip install "pytest-ollama-warmup[client]"',
    "python -m pip install tox && tox -e demo",
    "python -m pip install tox && tox",
]


class Block(NamedTuple):
    """A block of code: its *language*, "shell" if it is indented, and the text before it."""

    language: str
    code: str
    before: str


def blocks() -> Iterator[Block]:
    """Yield the README's blocks of code in their order."""
    end = 0
    for found in re.finditer(
        r"^```(?P<language>\w+)\n(?P<code>.*?)^```$|^(?P<shell>(?: {4}\S[^\n]*\n)+)",
        README,
        re.MULTILINE | re.DOTALL,
    ):
        code = found["code"] or re.sub(r"^ {4}", "", found["shell"], flags=re.MULTILINE)
        yield Block(found["language"] or "shell", code, README[end : found.start()])
        end = found.end()


def comparable(line: str) -> str:
    """Return *line* without figures, and without what depends on their width."""
    line = re.sub(r"\d+(\.\d+)? ?([kMG]B|ms|s)\b", "N", line)
    return re.sub(r"[=-]{3,}", "---", re.sub(r" +", " ", line)).strip()


def required(name: str, extra: str = "") -> dict[str, Distribution]:
    """Return the installed distribution *name*, and all that it requires, by name."""
    first = distribution(name)
    found: dict[str, Distribution] = {canonicalize_name(name): first}
    for text in first.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            found |= required(needed.name)
    return found


@pytest.fixture
def environ(suite: Suite, tmp_path: Path) -> dict[str, str]:
    """An environment as after the README's first command, and an Ollama that has yet to pull."""
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "pytest_ollama_warmup").symlink_to(Path(pytest_ollama_warmup.__file__).parent)
    for one in required("pytest-ollama-warmup", "client").values():
        names = {file.parts[0] for file in one.files or ()}
        for name in names - {"..", "__pycache__", "pytest_ollama_warmup"}:
            if not name.endswith(".pth"):
                (site / name).symlink_to(Path(str(one.locate_file(name))))
        for entry in one.entry_points.select(group="console_scripts"):
            script = folder / "bin" / entry.name
            script.write_text(
                f"#!{folder}/bin/python\nimport sys\nfrom {entry.module} import {entry.attr}\n"
                f"sys.exit({entry.attr}())\n"
            )
            script.chmod(0o755)
    given = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "PYTEST_"))}
    return given | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}


@pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for a POSIX shell")
def test_every_block_works_as_pasted(suite: Suite, environ: dict[str, str]) -> None:
    # A wait that nobody feels is not shown.
    suite.ollama.add(replace(LLAMA, load_s=0.3))
    installs, out, ran = [], "", 0
    for block in blocks():
        if block.language == "python":
            (name,) = re.findall(r"save this as `([\w.]+)`", block.before)
            (suite.pytester.path / name).write_text(block.code, encoding="utf-8")
        elif block.language == "text":
            seen = [comparable(line) for line in out.splitlines()]
            for line in block.code.splitlines():
                assert comparable(line) in seen, out
        else:
            assert "shell" == block.language
            for line in block.code.splitlines():
                if "pip install" in line:
                    installs.append(line)
                    continue
                done = subprocess.run(
                    line,
                    shell=True,
                    cwd=suite.pytester.path,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    encoding="utf-8",
                )
                out, ran = done.stdout + done.stderr, ran + 1
                assert 0 == done.returncode, out
    assert INSTALLS == installs
    assert 1 == ran
    assert {"llama3.2:1b"} == {load.model for load in suite.ollama.loads}


def test_the_test_of_the_readme_is_skipped_without_the_model(suite: Suite) -> None:
    (code,) = (block.code for block in blocks() if block.language == "python")
    suite.write({"test_chat.py": code})
    result = suite.run("-rs")
    assert {"skipped": 1} == result.counts
    assert "--ollama-pull=missing" in result.out


def test_the_readme_fits_a_screen_and_a_half_and_begins_the_way_readers_need() -> None:
    lines = README.splitlines()
    assert len(lines) <= 80
    # A CI script looks for this line.
    assert "    python -m pip install tox && tox" in lines
    features = README[README.index("| you want |") :]
    assert features.index("num_ctx") < features.index("ollama_preload = ")


def test_the_figures_of_the_readme_are_those_of_the_benchmark() -> None:
    measured = (TOP / "benchmarks" / "README.md").read_text("utf-8")
    (row,) = re.findall(r"^\| -n 0 .*\|$", measured, re.MULTILINE)
    without, *_, plugin = re.findall(r"\((\d\.\d\d)\)", row)
    assert f"took {plugin} s instead of {without} s" in " ".join(README.split())


@pytest.mark.parametrize("theme", THEMES)
def test_pictures_load_nothing_from_elsewhere(theme: str) -> None:
    assert f"docs/pictures/run-{theme}.svg" in README
    for svg in ((PICTURES / f"run-{theme}.svg").read_text("utf-8"), draw("x", "pytest", theme)):
        assert "url(http" not in svg.replace('"', "")
        assert "@font-face" not in svg
        assert "href" not in svg


def test_a_picture_shows_what_is_left_on_the_screen() -> None:
    written = (
        "a\r\n\x1b[?25l\r\x1b[2Kbar 1\nbar 2\r\x1b[2K\x1b[1A\x1b[2K\x1b[32mgreen\x1b[0m\r\nx\ry"
    )
    assert "a\n\x1b[32mgreen\x1b[0m\ny" == final_screen(written)
