"""What one run learns for the next: which contexts its tests use, which digests its models have.

It is kept in pytest's cache, which ``--cache-clear`` forgets; where there is none, nothing is
learned. What tests are given (``ollama_options``) never changes by it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.roles import settings_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Mapping

    import pytest

    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome

_CONTEXTS = "ollama-warmup/contexts"
_DIGESTS = "ollama-warmup/digests"


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


def learn(
    config: pytest.Config, outcomes: Iterable[Outcome], seen: Mapping[str, Counter[int]]
) -> None:
    """Keep for the next run what this one has seen."""
    contexts, digests = _read(config, _CONTEXTS), _read(config, _DIGESTS)
    before = dict(contexts), dict(digests)
    for outcome in outcomes:
        key = f"{_place(config, outcome.host)} {outcome.key}"
        if outcome.digest:
            digests[key] = outcome.digest
        if outcome.key in seen and "num_ctx" not in dict(outcome.options):
            (context, _), *_ = seen[outcome.key].most_common(1)
            # What the server takes by itself needs no learning, nor a second time what is learned.
            if context != outcome.context_length:
                contexts[key] = context
    if (contexts, digests) != before:
        cache = config.cache
        assert cache is not None
        cache.set(_CONTEXTS, contexts)
        cache.set(_DIGESTS, digests)


def learns(config: pytest.Config) -> bool:
    """Whether there is a cache to keep it in."""
    return getattr(config, "cache", None) is not None


def _place(config: pytest.Config, url: str) -> str:
    """Return what is known by: a server of the run's own has another port each time."""
    serve = settings_of(config).serve
    return "a server of its own" if serve.value else url


def _read(config: pytest.Config, name: str) -> dict[str, Any]:
    found = config.cache.get(name, {}) if learns(config) and config.cache else {}
    # Somebody may have edited it.
    return found if isinstance(found, dict) else {}


def _context(value: object) -> int:
    return value if isinstance(value, int) and value >= 16 else 0
