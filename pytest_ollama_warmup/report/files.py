"""Write the record of a run to a file: JSON, Markdown, or a page in HTML."""

from __future__ import annotations

import json
from base64 import b64encode
from errno import EISDIR
from hashlib import sha256
from importlib.util import find_spec
from os import strerror
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.report.headline import headline, subtitle
from pytest_ollama_warmup.report.markdown import markdown
from pytest_ollama_warmup.report.models import failures, rows
from pytest_ollama_warmup.report.timeline import (
    WAIT_S,
    Bar,
    Timeline,
    figures,
    ticks,
    timeline,
)
from pytest_ollama_warmup.text import clean, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]

# How many tests a page names of those that waited or met a cold model, and of the others.
TESTS = 10
SLOWEST = 5
NAME_LIMIT = 200
LEGEND = {
    "wait": "waiting for a model or server",
    "pull": "pull",
    "verify": "verify",
    "load": "load",
    "reload": "reload",
    "tests": "tests with a model",
    "failed": "failed",
    "others": "other tests",
}


def missing_for(path: Path) -> str:
    """Say what a report at *path* needs and is not installed; empty where nothing is."""
    if path.suffix.lower() == ".html" and find_spec("jinja2") is None:
        return (
            "an HTML report needs jinja2. Install it with "
            "pip install 'pytest-ollama-warmup[html]', or write a .md or .json report."
        )
    return ""


def check(path: Path) -> None:
    """See that :func:`write` can write *path*, and leave nothing there.

    Raises:
        OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, strerror(EISDIR))
    # As long as what is written first, and another file: another run may be writing that just now.
    probe = path.with_name(f".{path.name}.checked")
    probe.touch()
    probe.unlink(missing_ok=True)


def write(document: Document, path: Path) -> None:
    """Write the report that the suffix of *path* asks for.

    Raises:
        OSError: it cannot be written there.
    """
    render = {".json": as_json, ".md": markdown, ".html": page}[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # As one file that is whole: what reads it meanwhile sees the old one.
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(render(document), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def as_json(document: Document) -> str:
    """Return the document itself, in ASCII: a terminal shows it as it is."""
    return json.dumps(document, indent=1) + "\n"


def page(document: Document) -> str:
    """Return a page that holds all it needs, and loads nothing."""
    from jinja2 import Environment, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clean"] = lambda text, limit=NAME_LIMIT: clean(text, limit)
    environment.filters["seconds"] = seconds
    environment.filters["setting"] = _setting
    script = (folder / "page.js").read_text("utf-8")
    lanes = timeline(document)
    kinds = {bar.kind for lane in lanes.lanes for bar in lane.bars}
    return environment.from_string((folder / "page.html").read_text("utf-8")).render(
        document=document,
        headline=headline(document),
        subtitle=subtitle(document),
        figures=figures(document),
        failures=failures(document),
        models=rows(document),
        lanes=lanes.lanes,
        place=lambda bar: _place(bar, lanes.seconds),
        wide=lambda bar: bar.seconds >= lanes.seconds / 8,
        percent=lambda at_s: f"{100 * at_s / lanes.seconds:.2f}" if lanes.seconds else "0",
        ticks=ticks(lanes.seconds),
        first_test=_first_test(lanes),
        legend=[(kind, words) for kind, words in LEGEND.items() if kind in kinds],
        slow=(slow := _slow(document)),
        least_s=WAIT_S,
        cold=any(test["cold"] for test in slow),
        style=(folder / "page.css").read_text("utf-8"),
        script=script,
        # Only this script runs, whatever is in the texts.
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _setting(value: object) -> str:
    """Write the value of a setting as a user would: numbers with a fraction are durations."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return seconds(value) if isinstance(value, float) and value > 0 else str(value)


def _place(bar: Bar, total_s: float) -> str:
    # The narrowest bar has three pixels, also at the end.
    left, width = 100 * bar.start / total_s, 100 * bar.seconds / total_s
    return f"left:min({left:.2f}%,100% - 3px);width:{width:.2f}%"


def _first_test(lanes: Timeline) -> float | None:
    # Where tests come first there is nothing to mark.
    early = lanes.first_test is None or lanes.first_test < 0.02 * lanes.seconds
    return None if early else lanes.first_test


def _slow(document: Document) -> list[dict[str, Any]]:
    """Return the tests that waited, met a cold model or took longest, long waits first."""
    tests = document["tests"]
    waited = [test for test in tests if test["waited_s"] >= WAIT_S or test["cold"]]
    took = sorted((test for test in tests if _took_s(test) >= WAIT_S), key=_took_s, reverse=True)
    waited = sorted(waited, key=lambda test: -float(test["waited_s"]))[:TESTS]
    return waited + [test for test in took[:SLOWEST] if test not in waited]


def _took_s(test: Mapping[str, Any]) -> float:
    # None in a test that has not ended.
    return float(test["seconds"] or 0.0)
