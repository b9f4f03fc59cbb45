"""What one run learns for the next: contexts, what fits together, digests, and what was needed.

It is kept in pytest's cache, which ``--cache-clear`` forgets; where there is none, nothing is
learned. What tests are given (``ollama_options``) never changes by it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.ollama.logs import tolerating
from pytest_ollama_warmup.session.skipped_last_run import Gate
from pytest_ollama_warmup.session.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.ollama.requests import LoadKind
    from pytest_ollama_warmup.session.skipped_last_run import SetUp
    from pytest_ollama_warmup.warmup.memory import Memory
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target

_CONTEXTS = "ollama-warmup/contexts"
_DIGESTS = "ollama-warmup/digests"
_CROWDS = "ollama-warmup/crowds"
_KINDS = "ollama-warmup/kinds"
_LAST_RUN = "ollama-warmup/last-run"
_SKIPPED = "ollama-warmup/skipped"


def with_learned(config: pytest.Config, targets: Iterable[Target]) -> list[Target]:
    """Return *targets* with the contexts that tests of earlier runs used on their hosts."""
    contexts = _read(config, _CONTEXTS)

    def learned(target: Target) -> Target:
        if "num_ctx" in dict(target.spec.options):
            return target
        place = _place(config, target.host)
        return target._replace(learned=_context(contexts.get(f"{place} {target.key}")))

    return [learned(target) for target in targets]


def previous_digest(config: pytest.Config, outcome: Outcome) -> str:
    """Return the digest that a model had in the last run; empty where it has not changed."""
    before = _read(config, _DIGESTS).get(f"{_place(config, outcome.host)} {outcome.key}", "")
    if not (isinstance(before, str) and before and outcome.digest) or before == outcome.digest:
        return ""
    return before


def crowds(config: pytest.Config, url: str) -> list[list[str]]:
    """Return the sets of models that did not fit together into a server's memory."""
    sets = _read(config, _CROWDS).get(_place(config, url), [])
    return [crowd for crowd in sets if _is_texts(crowd)] if isinstance(sets, list) else []


def kind_of(config: pytest.Config, url: str, target: Target) -> LoadKind | None:
    """Return how earlier runs have loaded a model; None for one that runs in the cloud."""
    kind = _read(config, _KINDS).get(f"{_place(config, url)} {target.key}")
    return None if kind == "cloud" else "embed" if kind == "embed" else "generate"


def last_run(config: pytest.Config) -> list[str]:
    """Return the models, by key, that tests needed in the last run, if it was one like this."""
    run = _read(config, _LAST_RUN)
    models: list[str] = run.get("models", [])
    return models if run.get("call") == _call(config) and _is_texts(models) else []


def remember_run(config: pytest.Config, models: list[str]) -> None:
    """Keep for the next run which *models* the tests of this one needed, those first in front."""
    now: dict[str, Any] = {"call": _call(config), "models": models} if models else {}
    if (cache := getattr(config, "cache", None)) is not None and now != _read(config, _LAST_RUN):
        cache.set(_LAST_RUN, now)


def skipped(config: pytest.Config) -> dict[str, Gate]:
    """Return the tests that skipped at set-up when they were last run, by no doing of ours."""
    gates = _read(config, _SKIPPED)
    return {test: Gate(*gate) for test, gate in gates.items() if _is_texts(gate) and len(gate) == 2}


def learn_skips(
    config: pytest.Config, set_ups: Mapping[str, SetUp], models: Iterable[ModelSpec]
) -> None:
    """Keep for the next run which tests skipped at set-up, of those that need *models*."""
    if (cache := getattr(config, "cache", None)) is None:
        return
    # "llama3.2 is off": without tag, and without the registry.
    names = {spec.name.lower().rpartition("/")[2].partition(":")[0] for spec in models}
    before = skipped(config)
    now = {test: gate for test, gate in before.items() if test not in set_ups}
    for test, set_up in set_ups.items():
        if set_up.gate is not None and set_up.confirms(before.get(test), names):
            now[test] = set_up.gate
    if now != before:
        cache.set(_SKIPPED, now)


def learn(config: pytest.Config, memory: Memory, url: str) -> dict[str, int]:
    """Keep for the next run what this one has seen at *url*; return the contexts kept, by key.

    Of several contexts that is the one of the first use: with any other the first test would have
    the server reload the model: one load more than without the plugin.
    """
    cache = getattr(config, "cache", None)
    if cache is None:
        return {}
    names = (_CONTEXTS, _DIGESTS, _CROWDS, _KINDS)
    before = [_read(config, name) for name in names]
    contexts, digests, rooms, kinds = now = [dict(content) for content in before]
    place, kept = _place(config, url), dict[str, int]()
    for outcome in memory.outcomes.values():
        key = f"{place} {outcome.key}"
        if outcome.digest:
            digests[key] = outcome.digest
        if kind := _kind(config, outcome):
            kinds[key] = kind
        else:
            kinds.pop(key, None)
        uses = [use for use in memory.uses.get(outcome.key, ()) if use.context]
        if not uses or "num_ctx" in dict(outcome.options):
            continue
        # What the server takes by itself needs no learning, nor a second time what is learned.
        if uses[0].context != outcome.context_length:
            kept[outcome.key] = contexts[key] = uses[0].context
    sets = [frozenset(crowd) for crowd in crowds(config, url)]
    misfits = {crowd for crowd in [*sets, *memory.usage.crowds] if not memory.usage.fits(crowd)}
    # Of a set and a smaller one the smaller says more.
    rooms[place] = sorted(
        sorted(crowd) for crowd in misfits if not any(other < crowd for other in misfits)
    )
    if not rooms[place]:
        del rooms[place]
    for name, old, new in zip(names, before, now, strict=True):
        if new != old:
            cache.set(name, new)
    return kept


def _kind(config: pytest.Config, outcome: Outcome) -> str:
    """Return what the next run has to know to load a model; empty for one that makes text."""
    if not outcome.ready or settings_of(config).warm.value == "off":
        return ""
    if not (outcome.step("load") or outcome.left_out):
        return "cloud"
    return "" if "completion" in (outcome.capabilities or ("completion",)) else "embed"


def cache_of(config: pytest.Config) -> pytest.Cache | None:
    """Return pytest's cache, also before conftests are imported; None where there is none."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is not None:
        return cache
    # Made as pytest does it in pytest_configure, and in no way that it promises to keep.
    with tolerating("to read pytest's cache before conftests"):
        if not config.known_args_namespace.cacheclear:
            folder = pytest.Cache.cache_dir_from_config(config, _ispytest=True)
            return pytest.Cache(folder, config, _ispytest=True)
    return None


def _call(config: pytest.Config) -> list[str]:
    """Return what two runs have in common that select the same tests."""
    call = config.invocation_params
    return [str(call.dir), os.environ.get("PYTEST_ADDOPTS", ""), *map(str, call.args)]


def _place(config: pytest.Config, url: str) -> str:
    """Return what is known by: a server of the run's own has another port each time."""
    serve = settings_of(config).serve
    return "a server of its own" if serve.value else url


def _read(config: pytest.Config, name: str) -> dict[str, Any]:
    cache = cache_of(config)
    content = cache.get(name, {}) if cache is not None else {}
    # Somebody may have edited it.
    return content if isinstance(content, dict) else {}


def _context(value: object) -> int:
    return value if isinstance(value, int) and value >= 16 else 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
