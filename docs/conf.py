"""Configuration of Sphinx: ``tox -e docs`` builds the site from the pages in this folder."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from generated import expand

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pytest-ollama-warmup"
author = "the authors of pytest-ollama-warmup"
project_copyright = author
version = release = installed(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "examples"]
# A link to a page, heading or object that does not exist is a warning, and tox runs with -W.
nitpicky = True
# Named in signatures, and described in the text.
nitpick_ignore = [
    ("py:class", "Record"),
    ("py:class", "pytest_ollama_warmup.warmup.record.Record"),
    ("py:class", "collections.abc.Iterable"),
    ("py:exc", "BadSetting"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
# [text](page.md#heading) works for headings down to this level, as on GitHub.
myst_heading_anchors = 4

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
# Indented blocks are commands and what they print.
highlight_language = "text"

# A folder that has no page yet is no mistake.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: "didn't match any documents" not in str(record.msg)
)


def setup(app: Sphinx) -> None:
    """Insert what is generated from the code before a page is parsed."""

    def insert(app: Sphinx, docname: str, source: list[str]) -> None:
        source[0] = expand(source[0])

    app.connect("source-read", insert)
