"""What one run learns for the next: the contexts of its tests, what fits together, and digests.

It is kept in pytest's cache, which ``--cache-clear`` forgets; where there is none, nothing is
learned. What tests are given (``ollama_options``) never changes by it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.roles import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_ollama_warmup.warmup.memory import Memory
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome

_CONTEXTS = "ollama-warmup/contexts"
_DIGESTS = "ollama-warmup/digests"
_CROWDS = "ollama-warmup/crowds"


def with_learned(config: pytest.Config, url: str, targets: Iterable[Target]) -> list[Target]:
    """Return *targets* with the contexts that tests of earlier runs used on their servers.

    That is *url* where a target does not say.
    """
    contexts = _read(config, _CONTEXTS)
    return [
        target
        if "num_ctx" in dict(target.spec.options)
        else replace(
            target,
            learned=_context(contexts.get(f"{_place(config, target.host or url)} {target.key}")),
        )
        for target in targets
    ]


def changed(config: pytest.Config, outcome: Outcome) -> str:
    """Say that a model is another one than in the last run; empty where it is not, or unknown."""
    before = _read(config, _DIGESTS).get(f"{_place(config, outcome.host)} {outcome.key}", "")
    if not (isinstance(before, str) and before and outcome.digest) or before == outcome.digest:
        return ""
    return f"{outcome.model} changed since the last run: {before[:12]} → {outcome.digest[:12]}"


def crowds(config: pytest.Config, url: str) -> list[list[str]]:
    """Return the sets of models that did not fit together into a server's memory."""
    found = _read(config, _CROWDS).get(_place(config, url), [])
    return [one for one in found if _is_texts(one)] if isinstance(found, list) else []


def learn(config: pytest.Config, memory: Memory, url: str) -> dict[str, int]:
    """Keep for the next run what this one has seen at *url*; return the contexts kept, by key.

    Of several contexts that is the one of the first use: with any other the first test would have
    the server reload the model: one load more than without the plugin.
    """
    cache = getattr(config, "cache", None)
    if cache is None:
        return {}
    contexts, digests, place = (
        _read(config, _CONTEXTS),
        _read(config, _DIGESTS),
        _place(config, url),
    )
    rooms, kept = _read(config, _CROWDS), dict[str, int]()
    before = dict(contexts), dict(digests), dict(rooms)
    for outcome in memory.outcomes.values():
        key = f"{place} {outcome.key}"
        if outcome.digest:
            digests[key] = outcome.digest
        uses = [use for use in memory.uses.get(outcome.key, ()) if use.context]
        if not uses or "num_ctx" in dict(outcome.options):
            continue
        # What the server takes by itself needs no learning, nor a second time what is learned.
        if uses[0].context != outcome.context_length:
            kept[outcome.key] = contexts[key] = uses[0].context
    known = [frozenset(one) for one in crowds(config, url)]
    found = {one for one in [*known, *memory.usage.crowds] if not memory.usage.fits(one)}
    # Of a set and a smaller one the smaller says more.
    rooms[place] = sorted(sorted(one) for one in found if not any(other < one for other in found))
    if not rooms[place]:
        del rooms[place]
    if (contexts, digests, rooms) != before:
        cache.set(_CONTEXTS, contexts)
        cache.set(_DIGESTS, digests)
        cache.set(_CROWDS, rooms)
    return kept


def _place(config: pytest.Config, url: str) -> str:
    """Return what is known by: a server of the run's own has another port each time."""
    serve = settings_of(config).serve
    return "a server of its own" if serve.value else url


def _read(config: pytest.Config, name: str) -> dict[str, Any]:
    cache = getattr(config, "cache", None)
    found = cache.get(name, {}) if cache is not None else {}
    # Somebody may have edited it.
    return found if isinstance(found, dict) else {}


def _context(value: object) -> int:
    return value if isinstance(value, int) and value >= 16 else 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
