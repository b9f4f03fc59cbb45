"""A run that needs nothing imports nothing, as far as it is seen from a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Suite

PACKAGE = "pytest_ollama_warmup"
# All of ours that a run imports which asks for nothing and needs no model.
OF_EVERY_RUN = {
    "",
    ".config",
    ".config.options",
    ".plugin",
    ".session",
    ".session.fixtures",
    ".session.hookspecs",
    ".session.mark_names",
    ".session.state",
}
COSTLY = {"httpx", "filelock", "rich", "xdist", "anyio", "ollama", "jinja2"}


def run_python(folder: Path, *args: str) -> str:
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_loading_the_plugin_imports_no_library(tmp_path: Path) -> None:
    program = f"import sys, {PACKAGE}.plugin; print(*sys.modules)"
    imported = run_python(tmp_path, "-c", program).split()
    assert "pytest" in imported
    assert set() == COSTLY & set(imported)


CONFTEST = """
import sys
from pathlib import Path

def pytest_unconfigure(config):
    role = "worker" if hasattr(config, "workerinput") else "main"
    Path(__file__).with_name(role).write_text(" ".join(sys.modules))
"""


@pytest.mark.parametrize(
    ("args", "roles"),
    [
        ([], ["main"]),
        (["-p", "xdist", "-n", "1"], ["main", "worker"]),
        # Looking at what is listed, or at a test that is marked, needs nothing either.
        (["--collect-only", "--ollama-preload", "llama3.2:1b"], ["main"]),
        (["-m", "not requires_model"], ["main"]),
    ],
    ids=["one-process", "xdist", "looking", "deselected"],
)
def test_a_run_that_needs_nothing_imports_no_library(
    tmp_path: Path, args: list[str], roles: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, "utf-8")
    marked = "import pytest\n\n@pytest.mark.requires_model('m')\ndef test_b():\n    pass\n"
    plain = "def test_a():\n    pass\n"
    needs_model = "--collect-only" in args or "-m" in args
    (tmp_path / "test_it.py").write_text(plain + (marked if needs_model else ""), "utf-8")
    run_python(tmp_path, "-m", "pytest", "-p", "ollama_warmup", *args)
    for role in roles:
        imported = (tmp_path / role).read_text("utf-8").split()
        assert f"{PACKAGE}.plugin" in imported
        assert set() == (COSTLY - {"xdist"}) & set(imported)
        assert [] == [name for name in imported if name.startswith(f"{PACKAGE}.emulator")]


def test_a_run_that_needs_nothing_imports_no_settings(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST, "utf-8")
    (tmp_path / "test_it.py").write_text("def test_a(tmp_path):\n    pass\n", "utf-8")
    run_python(tmp_path, "-m", "pytest", "-p", "ollama_warmup")
    imported = (tmp_path / "main").read_text("utf-8").split()
    ours = {one.removeprefix(PACKAGE) for one in imported if one.startswith(PACKAGE)}
    assert OF_EVERY_RUN == ours


def test_pytest_does_not_rewrite_the_asserts_of_a_plugin_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by its entry point, as users have it: then pytest rewrites what its distribution has.
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    test = f"""
    import sys

    def test_it():
        modules = [name for name in sys.modules if name.startswith("{PACKAGE}.")]
        loaders = {{name: type(sys.modules[name].__spec__.loader).__name__ for name in modules}}
        assert "{PACKAGE}.plugin" in loaders
        assert {{"SourceFileLoader"}} == {{*loaders.values()}}, loaders
        assert "AssertionRewritingHook" == type(__spec__.loader).__name__
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(test), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--ollama-off"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mark", ["", "@pytest.mark.requires_model"], ids=["unmarked", "marked"])
def test_workers_of_a_suite_that_marks_no_test_import_no_library(suite: Suite, mark: str) -> None:
    test = f"import pytest\n\n{mark}\ndef test_a():\n    pass\n"
    suite.write({"conftest.py": CONFTEST, "test_it.py": test})
    assert {"passed": 1} == suite.run("--ollama-preload=llama3.2:1b", "-n1", fresh=True).counts
    imported = (suite.pytester.path / "worker").read_text("utf-8").split()
    assert (
        f"{PACKAGE}.ollama.plain_look" not in imported
        if mark
        else f"{PACKAGE}.ollama.plain_look" in imported
    )
    assert bool(mark) == bool({"httpx", "filelock", f"{PACKAGE}.warmup.warmer"} & set(imported))
