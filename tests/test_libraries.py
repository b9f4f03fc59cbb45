"""Each library has a page with its example; tests/live/test_libraries.py runs the examples."""

from __future__ import annotations

import re

import pytest

from tests.live.test_libraries import EXAMPLES, LIBRARIES

PAGES = EXAMPLES.parents[1] / "libraries"


def page_of(folder: str) -> str:
    return f"{folder.replace('_', '-')}.md"


def test_each_library_has_an_example_and_a_page_that_the_table_leads_to() -> None:
    folders = sorted(library.folder for library in LIBRARIES)
    assert folders == sorted(path.name for path in EXAMPLES.iterdir())
    pages = sorted(page_of(folder) for folder in folders)
    assert sorted([*pages, "index.md"]) == sorted(path.name for path in PAGES.iterdir())
    table = re.findall(r"^\| \[.*?\]\((.*?)\)", (PAGES / "index.md").read_text("utf-8"), re.M)
    assert pages == sorted(table)


@pytest.mark.parametrize("folder", [library.folder for library in LIBRARIES])
def test_a_page_shows_its_example_and_names_the_variable_that_is_tried(folder: str) -> None:
    text = (PAGES / page_of(folder)).read_text("utf-8")
    shown = {f"../examples/libraries/{folder}/{name}" for name in ("conftest.py", "test_chat.py")}
    assert shown == set(re.findall(r"^```\{literalinclude\} (\S+)$", text, re.M))
    assert all((PAGES / path).exists() for path in shown)
    (export,) = [library.export for library in LIBRARIES if library.folder == folder]
    assert ([export] if export else []) == re.findall(r'^ollama_export = \["(.*)"\]$', text, re.M)
    assert "\nTried with " in text
