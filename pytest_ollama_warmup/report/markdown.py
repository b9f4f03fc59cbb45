"""The report in Markdown, as GitHub and GitLab show it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.report.headline import headline, subtitle
from pytest_ollama_warmup.report.models import rows
from pytest_ollama_warmup.report.timeline import figures, timeline
from pytest_ollama_warmup.text import clean, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Document = Mapping[str, Any]

TEXT_LIMIT = 600
# A chart with more lanes or bars is no help, and GitHub draws none of more than 50,000 characters.
LANES, BARS_OF_LANE, PARTS = 24, 20, 40
SIGNS = {"ready": "✅", "failed": "❌", "unfinished": "⏳"}
# Whatever Markdown or HTML gives a meaning. Other signs have one only at the beginning of a line,
# where no text from outside stands, or behind one of these.
_SPECIAL = re.compile(r"[\\`*_\[\]<>#|~&$@]|:(?=[\w+-]+:)")
_KINDS = {"tests": "active", "failed": "crit", "reload": "crit", "load": "active", "others": "done"}


def escaped(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return *text* as Markdown that shows it as it is, on one line."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", clean(text, limit))


def code(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return *text* as code, or escaped where code cannot hold it."""
    plain = clean(text, limit)
    return escaped(plain) if not plain or set("`|\\") & set(plain) else f"`{plain}`"


def markdown(document: Document, heading: str = "#") -> str:
    """Return the whole report: figures, models, findings and a chart."""
    parts = [
        f"{heading} Ollama models",
        f"**{escaped(headline(document))}** {escaped(subtitle(document))}",
        _table(
            ("", "", ""),
            [(figure.name, figure.value, escaped(figure.more)) for figure in figures(document)],
        ),
        *_models(document),
        *_findings(document, heading),
        *_chart(document, heading),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _models(document: Document) -> Iterator[str]:
    models = rows(document)
    if not models:
        return
    several = any(model.host for model in models)
    yield _table(
        ("", "Model", *(["Server"] if several else []), "What it took", "Tests", "Digest"),
        [
            (
                SIGNS[model.status],
                code(model.name),
                *([code(model.host)] if several else []),
                escaped(model.cost),
                str(model.tests or ""),
                code(dict(model.details).get("Digest", "")),
            )
            for model in models
        ],
    )
    failed = dict.fromkeys(model.error for model in models if model.status == "failed")
    if failed:
        yield "\n".join(f"- ❌ {escaped(error)}" for error in failed)
    changed = [model for model in document["models"] if model["previous_digest"]]
    if changed:
        yield "\n".join(
            f"- {code(model['title'])} changed since the last run: "
            f"{code(model['previous_digest'][:12])} → {code(model['digest'][:12])}"
            for model in changed
        )


def _findings(document: Document, heading: str) -> Iterator[str]:
    lines = [f"- ⚠️ Lost: {escaped(loss['error'])}" for loss in document["lost"]]
    for finding in document["findings"]:
        cure = f"<br>→ {escaped(finding['cure'])}" if finding["cure"] else ""
        lines.append(f"- ⚠️ {escaped(finding['text'])}{cure}")
    if lines:
        yield f"{heading}# Findings\n\n" + "\n".join(lines)


def _chart(document: Document, heading: str) -> Iterator[str]:
    """Yield a Mermaid gantt: milliseconds since the run began, a section per model and worker."""
    gantt = timeline(document, finest=PARTS)
    if not gantt.seconds:
        return
    lines = ["gantt", "    dateFormat x", f"    axisFormat {_axis(gantt.seconds)}"]
    for lane in gantt.lanes[:LANES]:
        lines.append(f"    section {_chart_text(lane.name, 40)}")
        bars = [bar for bar in lane.bars if bar.kind not in ("show", "verify")]
        # The longest say most.
        kept = sorted(bars, key=lambda bar: -bar.seconds)[:BARS_OF_LANE]
        for bar in sorted(kept, key=lambda bar: bar.start):
            tag = f"{_KINDS[bar.kind]}, " if bar.kind in _KINDS else ""
            begin = round(bar.start * 1000)
            end = max(round(bar.end * 1000), begin + 1)
            lines.append(f"    {_chart_text(bar.words, 60)} :{tag}{begin}, {end}")
    chart = "\n".join(lines)
    yield f"{heading}# Timeline\n\n```mermaid\n{chart}\n```"


def _axis(total_s: float) -> str:
    return "%M:%S" if total_s >= 10 else "%S.%L"


def _chart_text(text: str, limit: int) -> str:
    """Return *text* without what Mermaid gives a meaning."""
    # The end says how long it took.
    plain = re.sub(r"[^\w .,()/+=\[\]:-]", " ", shorten(clean(text), limit).replace("…", ".."))
    return re.sub(r"\s+", " ", plain).strip().replace(":", "#58;") or "-"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    if not lines:
        return ""
    rule = "|".join(["---"] * len(head))
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]
    )
