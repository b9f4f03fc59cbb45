"""What the name of a fixture means to a test: ours, or another one of the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.session.mark_names import EMULATOR_FIXTURE, HOST_FIXTURE, NEEDING

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIXTURES_MODULE = "pytest_ollama_warmup.session.fixtures"
_ELSEWHERE: pytest.StashKey[dict[object, bool]] = pytest.StashKey()


def our_fixtures(item: pytest.Item) -> list[str]:
    """Return those of our fixtures that *item* gets and that nobody has replaced."""
    if is_emulated(item):
        return []
    names = getattr(item, "fixturenames", ())
    fixtures = [name for name in NEEDING if name in names and is_ours(name, item)]
    # An address is no need in itself, but one that a hook of the suite has yet to give.
    if HOST_FIXTURE in names and item.config.hook.pytest_ollama_host.get_hookimpls():
        fixtures += [HOST_FIXTURE] if is_ours(HOST_FIXTURE, item) else []
    return fixtures


def fixtures_of_the_run(item: pytest.Item) -> list[str]:
    """Return those of our fixtures that *item* gets and that lead to the server of the run."""
    wanted: list[str] = item.fixturenames  # type: ignore[attr-defined]
    fixtures = [name for name in NEEDING if name in wanted and is_ours(name, item)]
    # All of these use the address.
    addresses = () if fixtures else (HOST_FIXTURE, "ollama_openai_base_url")
    return fixtures + [name for name in addresses if name in wanted and is_ours(name, item)]


def is_emulated(item: pytest.Item) -> bool:
    """Whether *item* gets an emulated Ollama, ours or the suite's own: it needs no real one."""
    return EMULATOR_FIXTURE in getattr(item, "fixturenames", ()) and any(
        map(is_from_us, definitions_of(EMULATOR_FIXTURE, item))
    )


def is_elsewhere(item: pytest.Item) -> bool:
    """Whether the suite has a fixture of its own that says where this item's server is."""
    if not hasattr(item, "fixturenames"):
        return False
    # The same for all tests of a class or a module.
    answers, parent = item.config.stash.setdefault(_ELSEWHERE, {}), item.parent
    if parent not in answers:
        definitions = item.session._fixturemanager.getfixturedefs(HOST_FIXTURE, item)
        last = definitions[-1].func if definitions else None
        answers[parent] = last is not None and last.__module__ != _FIXTURES_MODULE
    return answers[parent]


def definitions_of(name: str, item: pytest.Item) -> Sequence[pytest.FixtureDef[Any]]:
    """Return what *name* means to *item*, the last one first asked; a plain argument too."""
    info = getattr(item, "_fixtureinfo", None)
    if info is not None and name in info.name2fixturedefs:
        definitions: Sequence[pytest.FixtureDef[Any]] = info.name2fixturedefs[name]
        return definitions
    # A name that is only asked for at run time.
    return item.session._fixturemanager.getfixturedefs(name, item) or ()


def is_direct(definition: pytest.FixtureDef[Any]) -> bool:
    """Whether a parameter is handed to the test as it is; pytest makes a fixture of it too."""
    return definition.func.__name__ == "get_direct_param_fixture_func"


def is_from_us(definition: pytest.FixtureDef[Any]) -> bool:
    """Whether *definition* is our own, and not one of the suite with the same name."""
    return definition.func.__module__ == _FIXTURES_MODULE


def is_ours(name: str, item: pytest.Item) -> bool:
    """Whether *item* gets our own fixture by *name*."""
    # Public suites have fixtures, and arguments of tests, of these names with other meanings.
    definitions = definitions_of(name, item)
    return bool(definitions) and is_from_us(definitions[-1])
