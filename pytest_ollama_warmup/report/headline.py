"""A run in one sentence, and what took part in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.report.timeline import loads_of, served
from pytest_ollama_warmup.text import clean, count, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]


def headline(document: Document) -> str:
    """Say how it went, as in ``2 models were ready after 24.1 s, and served 41 tests.``."""
    models = document["models"]
    if not models:
        bad = [server for server in document["servers"] if server["status"] != "ready"]
        return "Ollama did not answer." if bad else "This run used no model."
    failed = [model for model in models if model["status"] == "failed"]
    unfinished = [model for model in models if model["status"] == "unfinished"]
    if failed:
        of_all = f"{len(failed)} of {count(len(models), 'model')}"
        return f"{of_all} could not be made ready."
    if unfinished:
        of_all = f"{len(unfinished)} of {count(len(models), 'model')}"
        return f"The run ended before {of_all} {_was(len(unfinished))} ready."
    number = len(served(document))
    and_served = f", and served {count(number, 'test')}" if number else ""
    what = f"{count(len(models), 'model')} {_was(len(models))}"
    pulls = [step for model in models for step in model["steps"] if step["kind"] == "pull"]
    work = [*loads_of(document), *pulls]
    if not work:
        return f"{what} ready from the start{and_served}."
    begin = min(step["start"] for step in work)
    took_s = max(step["start"] + step["seconds"] for step in work) - begin
    return f"{what} ready after {seconds(took_s)}{and_served}."


def subtitle(document: Document) -> str:
    """Say when, on which servers, and with which versions."""
    parts = []
    if document["started"]:
        when = datetime.fromtimestamp(document["started"], UTC)
        parts.append(f"{when:%Y-%m-%d %H:%M} UTC")
    for server in document["servers"][:4]:
        version = f" {clean(server['version'], 40)}" if server["version"] else ""
        parts.append(f"Ollama{version} at {clean(server['host'], 200)}")
    if document["plugin_version"]:
        parts.append(f"pytest-ollama-warmup {clean(document['plugin_version'], 40)}")
    if document["started"] and document["ended"]:
        parts.append(f"took {seconds(document['ended'] - document['started'])}")
    if document["exit_status"] is not None:
        parts.append(f"exit code {document['exit_status']}")
    return " · ".join(parts)


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
