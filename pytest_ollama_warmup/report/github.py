"""What a job on GitHub shows of a run: its summary, and annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.report.markdown import markdown
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Document = Mapping[str, Any]

# GitHub keeps 1 MiB of a step's summary, and shows ten annotations of each kind.
TEXT_LIMIT = 1000


def step_summary(document: Document) -> str:
    """Return what to append to the file that ``GITHUB_STEP_SUMMARY`` names."""
    return markdown(document, heading="##") + "\n"


def commands(document: Document) -> Iterator[str]:
    """Yield a workflow command for each model that failed, and for each finding.

    A model without which the run went on, as the tests were skipped, is a warning.
    """
    level = "warning" if document["exit_status"] in (0, 5) else "error"
    for error in dict.fromkeys(
        model["error"] for model in document["models"] if model["status"] == "failed"
    ):
        yield _command(level, "Ollama model not ready", error)
    for loss in document["lost"]:
        yield _command("warning", "Ollama model lost", loss["error"])
    for finding in document["findings"]:
        yield _command("warning", "Ollama models", f"{finding['text']} {finding['cure']}".strip())
    for model in document["models"]:
        if model["previous_digest"]:
            before, now = model["previous_digest"][:12], model["digest"][:12]
            words = f"{model['title']} changed since the last run: {before} → {now}"
            yield _command("notice", "Ollama model changed", words)


def _command(level: str, title: str, text: str) -> str:
    # Clean, it is on one line: an escaped line break would be one again.
    return f"::{level} title={title}::{clean(text, TEXT_LIMIT).replace('%', '%25')}"
