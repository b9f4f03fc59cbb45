"""What a report says of each model, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.report.timeline import loads_of
from pytest_ollama_warmup.text import clean, count, seconds, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]

NAME_LIMIT = 120
ERROR_LIMIT = 600


class Row(NamedTuple):
    """A model: *status* is ready, failed or unfinished; *cost* is what was done for it.

    *details* are names and values, *error* is why it failed.
    """

    name: str
    host: str
    status: str
    cost: str
    tests: int
    error: str
    details: list[tuple[str, str]]


def rows(document: Document) -> list[Row]:
    """Return a row for each model of a run."""
    several = len({model["host"] for model in document["models"]}) > 1
    # Those that need a look first.
    models = sorted(document["models"], key=lambda model: model["status"] == "ready")
    return [
        Row(
            name=clean(model["title"], NAME_LIMIT),
            host=clean(model["host"], NAME_LIMIT) if several else "",
            status=model["status"],
            cost=_cost(model),
            tests=len(model["tests"]),
            error=clean(model["error"] or model["brief"], ERROR_LIMIT),
            details=_details(model),
        )
        for model in models
    ]


def failures(document: Document) -> list[tuple[str, str]]:
    """Return what is wrong with models that are not ready, and what to do; each once."""
    errors = [model["error"] for model in document["models"] if model["status"] == "failed"]
    parts = [error.partition("\n") for error in dict.fromkeys(errors) if error]
    return [
        (clean(what, ERROR_LIMIT), clean(cure.replace("\n", " "), ERROR_LIMIT))
        for what, _, cure in parts
    ]


def _cost(model: Mapping[str, Any]) -> str:
    if model["status"] != "ready":
        return clean(model["brief"], NAME_LIMIT)
    steps = {step["kind"]: step for step in model["steps"]}
    parts = []
    if (pull := steps.get("pull")) is not None:
        of_size = f"{size(pull['size'])} " if pull["size"] else ""
        parts.append(f"pulled {of_size}in {seconds(pull['seconds'])}")
    if loads_of({"models": [model]}):
        parts.append(f"loaded in {seconds(steps['load']['seconds'])}")
    elif "load" in steps:
        parts.append("already loaded")
    if number := sum(step["kind"] == "reload" for step in model["steps"]):
        parts.append(f"reloaded {count(number, 'time')}")
    notes = [clean(note, NAME_LIMIT) for note in model["notes"] if note != "already loaded"]
    return ", ".join([*parts, *notes]) or "local"


def _details(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    details: list[tuple[str, str]] = []
    if model["digest"]:
        details.append(("Digest", clean(model["digest"][:12])))
    if model["previous_digest"]:
        details.append(("Digest in the last run", clean(model["previous_digest"][:12])))
    if model["size"]:
        details.append(("Size on disk", size(model["size"])))
    if model["memory"]:
        on_gpu = f", {size(model['vram'])} on the GPU" if model["vram"] else ", all on the CPU"
        details.append(("Memory", f"{size(model['memory'])}{on_gpu}"))
    if model["context_length"]:
        first = " at its first load" if model["reloads_by_tests"] else ""
        details.append(("Context length", f"{model['context_length']:,}{first}"))
    if model["capabilities"]:
        details.append(("Capabilities", clean(", ".join(model["capabilities"]), NAME_LIMIT)))
    for name, value in model["options"].items():
        source = clean(model["option_sources"].get(name, ""), NAME_LIMIT)
        details.append((clean(name), f"{clean(value)} ({source})"))
    if model["origin"]:
        details.append(("Named by", clean(model["origin"].removeprefix("from "), NAME_LIMIT)))
    if model["left_out"]:
        details.append(("Not loaded before the tests", clean(model["left_out"], ERROR_LIMIT)))
    return details
