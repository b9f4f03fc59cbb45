"""Text for users is written with the words that they use and search for."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import forked
from tests.command import Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import UserSuite

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "pytest_ollama_warmup"
PAGES = [TOP / "README.md", TOP / "CHANGELOG.md"]
PAGES += [path for path in sorted((TOP / "docs").rglob("*.md")) if "_build" not in path.parts]
PAGES += [TOP / "CONTRIBUTING.md", TOP / "SECURITY.md", TOP / "benchmarks" / "README.md"]
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = ("", "preload", "pull", "status", "unload", "cache-key", "demo")

# What we write instead: separated, loaded, missing, fix, forever or no limit, expected, keep-alive,
# loaded, again.
AVOIDED = re.compile(
    r"(?<![.\w])(parted|brought|lacking|mend(?:s|ed)?|for\s+ever|is\s+due|leases?|resident|anew)\b"
    # The demo's suite, a string of code, may call what it likes.
    r"(?!\()",
    re.IGNORECASE,
)


def avoided_in(text: str) -> list[str]:
    """Return the words of *text* that are to be avoided, each with what stands around it."""
    found = AVOIDED.finditer(text)
    return [text[max(0, one.start() - 30) : one.end() + 30] for one in found]


def prose_of(page: str) -> str:
    """Return *page* without code: names of fields and of files stay as they are."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", page)


def messages_of(source: str) -> Iterator[str]:
    """Yield the strings in *source* that may be shown: of several words, and no docstrings."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings
            and re.search(r"\w\s|\s\w", node.value)
        ):
            yield node.value


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(TOP).as_posix())
def test_pages(path: Path) -> None:
    assert [] == avoided_in(prose_of(path.read_text("utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_messages(path: Path) -> None:
    messages = list(messages_of(path.read_text("utf-8")))
    assert [] == [found for message in messages for found in avoided_in(message)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(command: str) -> None:
    run = Run(*command.split(), "--help")
    assert 0 == run.ret
    assert [] == avoided_in(run.out)


def test_help_of_pytest(suite: UserSuite) -> None:
    done = forked.run("pytest", "-p", "ollama_warmup", "--help", cwd=suite.pytester.path)
    assert "--ollama-preload" in done.out
    assert [] == avoided_in(done.out)


def test_only_what_is_shown_is_looked_at() -> None:
    source = '''
        def f(name):
            """Bring it for ever."""
            "lease"
            return f"{name} is lacking" + "lease_s" + "is due"
    '''
    messages = list(messages_of("if True:" + source))
    assert {" is lacking", "is due"} == set(messages)
    assert 2 == len([found for message in messages for found in avoided_in(message)])
    assert [] == avoided_in(prose_of("recommend a release, `lease_s`\n```\nanew\n```\n"))
    assert 2 == len(avoided_in(prose_of("kept for\never, then loaded Anew")))
