"""The marks requires_model and requires_ollama_model, and what the items of a session want.

Public suites have a mark ``requires_model`` of their own, for spaCy models, weights or containers:
the longer name is always ours, the short one where nobody else has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.session.definitions import is_elsewhere, is_emulated, our_fixtures
from pytest_ollama_warmup.session.mark_names import (
    ELSEWHERE_FIXTURE,
    LONG_NAME,
    NAME,
    Around,
    MayUseFixtures,
)
from pytest_ollama_warmup.session.parameters import (
    MODEL_FIXTURE,
    hint_at_indirect,
)
from pytest_ollama_warmup.session.requirement import names_in, requirement_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_ollama_warmup.warmup.plan import Want


def prepare_items(items: Iterable[pytest.Item]) -> None:
    """Add the mark to items that get one of our fixtures, before ``-m`` looks at marks.

    Those whose suite gives them another server also get the fixture that makes models ready there.
    """
    names: tuple[str, ...] = ()
    may_use = MayUseFixtures()
    for item in items:
        if not names:
            names = names_in(item.config)
            around, is_taken = Around(names), names == (LONG_NAME,)
        marked = around.is_marked(item)
        if not marked and may_use(item):
            if our_fixtures(item):
                item.add_marker(getattr(pytest.mark, LONG_NAME if is_taken else NAME))
                marked = True
            elif not is_emulated(item):
                hint_at_indirect(item)
        # One name is enough to select or deselect all tests that need a model.
        elif marked and not is_taken and item.get_closest_marker(NAME) is None:
            item.add_marker(getattr(pytest.mark, NAME))
        if marked and is_elsewhere(item) and not is_emulated(item):
            fixtures: list[str] = item.fixturenames  # type: ignore[attr-defined]
            # Tests that differ in parameters only share this list.
            if ELSEWHERE_FIXTURE not in fixtures:
                fixtures.insert(0, ELSEWHERE_FIXTURE)


def wants_of(items: Iterable[pytest.Item]) -> list[Want]:
    """Return what *items* want, in their order; those that need no model are left out.

    Raises:
        BadMark: a mark does not fit its signature; names the test.
    """
    return [want for want in each_want(items) if want is not None]


def each_want(items: Iterable[pytest.Item]) -> Iterator[Want | None]:
    """Yield what each of *items* wants; None where that is nothing.

    Raises:
        BadMark: a mark does not fit its signature; names the test.
    """
    around: Around | None = None
    for item in items:
        if around is None:
            around = Around(names_in(item.config))
        if around.is_marked(item):
            yield requirement_of(item, [*item.own_markers, *around.marks]).want()
        else:
            yield None


def want_of(item: pytest.Item, *, replayed: bool = False) -> Want | None:
    """Return what one item wants; None for an item without the mark, or that will not run.

    None too for one that is replayed from a recording, unless *replayed* asks for what it names.

    Raises:
        BadMark: a mark does not fit its signature.
    """
    return requirement_of(item).want(replayed=replayed)


def has_model_of_parameter(item: pytest.Item) -> bool:
    """Whether *item* has its model from a parameter, by name or by a mark of the parameter."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return False
    names = names_in(item.config)
    return MODEL_FIXTURE in callspec.params or any(mark.name in names for mark in callspec.marks)
