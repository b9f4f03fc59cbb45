"""The marks requires_model and requires_ollama_model, and what the items of a session want.

Public suites have a mark ``requires_model`` of their own, for spaCy models, weights or containers:
the longer name is always ours, the short one where nobody else has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.session.definitions import is_elsewhere, is_emulated, our_fixtures
from pytest_ollama_warmup.session.mark_arguments import Arguments, read_mark, united
from pytest_ollama_warmup.session.mark_names import (
    ELSEWHERE_FIXTURE,
    LONG_NAME,
    MARK_HELP,
    NAME,
    NEEDING_A_NAME,
    RECORDED,
    Around,
    MayUseFixtures,
)
from pytest_ollama_warmup.session.parameters import (
    MODEL_FIXTURE,
    check_direct,
    hint_at_indirect,
    specs_of_parameter,
)
from pytest_ollama_warmup.session.replays import is_replayed
from pytest_ollama_warmup.session.state import settings_of
from pytest_ollama_warmup.warmup.plan import Want

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_ollama_warmup.config.spec import ModelSpec


def prepare_items(items: Iterable[pytest.Item]) -> None:
    """Add the mark to items that get one of our fixtures, before ``-m`` looks at marks.

    Those whose suite gives them another server also get the fixture that makes models ready there.
    """
    names: tuple[str, ...] = ()
    may_use = MayUseFixtures()
    for item in items:
        if not names:
            names = _names_in(item.config)
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
            around = Around(_names_in(item.config))
        marked = around.is_marked(item)
        yield _want_of(item, [*item.own_markers, *around.marks]) if marked else None


def want_of(item: pytest.Item, *, replayed: bool = False) -> Want | None:
    """Return what one item wants; None for an item without the mark, or that will not run.

    None too for one that is replayed from a recording, unless *replayed* asks for what it names.

    Raises:
        BadMark: a mark does not fit its signature.
    """
    return _want_of(item, list(item.iter_markers()), replayed=replayed)


def _want_of(
    item: pytest.Item, all_marks: list[pytest.Mark], *, replayed: bool = False
) -> Want | None:
    names = _names_in(item.config)
    if NAME not in names and our_fixtures(item):
        # The test needs a model of ours: whose mark it is, is no question.
        names = (NAME, LONG_NAME)
    marks = [mark for mark in all_marks if mark.name in names]
    if not marks or is_emulated(item) or any(_prevents(mark, item) for mark in all_marks):
        return None
    recorded = any(mark.name == RECORDED for mark in all_marks)
    if recorded and not replayed and is_replayed(item, all_marks):
        return None
    return _want_by(item, [_arguments(mark, item) for mark in marks])


# Many tests share a mark.
_ARGUMENTS = pytest.StashKey["dict[int, tuple[pytest.Mark, Arguments]]"]()


def _arguments(mark: pytest.Mark, item: pytest.Item) -> Arguments:
    known = item.config.stash.setdefault(_ARGUMENTS, {})
    if id(mark) not in known:
        # With the mark itself, whose id could otherwise become another one's.
        known[id(mark)] = mark, read_mark(mark, item.nodeid)
    return known[id(mark)][1]


def _want_by(item: pytest.Item, marks: Iterable[Arguments]) -> Want:
    """Return what *item* wants by its *marks*, the closest first, and by its parameter."""
    specs: dict[str, ModelSpec] = {spec.model_key: spec for spec in specs_of_parameter(item)}
    on_unavailable, of_listed = "", list[str]()
    for read in marks:
        on_unavailable = on_unavailable or read.on_unavailable
        if not read.specs:
            of_listed += read.capabilities
        for spec in read.specs:
            # The closest mark comes first and wins; one further out may add to it.
            known = specs.setdefault(spec.model_key, spec)
            if known is not spec:
                first = known if known.options or not spec.options else spec
                specs[spec.model_key] = first._replace(
                    capabilities=united(known.capabilities, spec.capabilities),
                )
    check_direct(item, specs)
    fixture = (
        "" if specs else next((one for one in our_fixtures(item) if one in NEEDING_A_NAME), "")
    )
    return Want(
        test=item.nodeid,
        specs=tuple(specs.values()),
        fixture=fixture,
        on_unavailable=on_unavailable,
        capabilities=united(of_listed),
        elsewhere=is_elsewhere(item),
    )


_NAMES_OF_SUITE = pytest.StashKey[tuple[str, ...]]()


def _names_in(config: pytest.Config) -> tuple[str, ...]:
    """Return which names of marks are ours in this suite."""
    if _NAMES_OF_SUITE not in config.stash:
        taken = not settings_of(config).configured and _is_taken(config.getini("markers"))
        config.stash[_NAMES_OF_SUITE] = (LONG_NAME,) if taken else (NAME, LONG_NAME)
    return config.stash[_NAMES_OF_SUITE]


def _is_taken(lines: Iterable[str]) -> bool:
    """Whether the suite registers the short name by itself, and says nothing of Ollama."""
    theirs = [
        line
        for line in lines
        if line != MARK_HELP and line.partition(":")[0].partition("(")[0].strip() == NAME
    ]
    return bool(theirs) and not any("ollama" in line.lower() for line in theirs)


def has_model_of_parameter(item: pytest.Item) -> bool:
    """Whether *item* has its model from a parameter, by name or by a mark of the parameter."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return False
    names = _names_in(item.config)
    return MODEL_FIXTURE in callspec.params or any(mark.name in names for mark in callspec.marks)


def _prevents(mark: pytest.Mark, item: pytest.Item) -> bool:
    """Whether *mark* keeps *item* from running."""
    if mark.name == "skip":
        return True
    if mark.name == "skipif":
        return _holds(mark, item)
    if mark.name != "xfail" or mark.kwargs.get("run", True) is not False:
        return False
    return _holds(mark, item, without=True) and not item.config.getoption("runxfail", False)


def _holds(mark: pytest.Mark, item: pytest.Item, *, without: bool = False) -> bool:
    """Whether a condition of *mark* is true; *without* is the answer where it has none."""
    conditions = [*mark.args, *([mark.kwargs["condition"]] if "condition" in mark.kwargs else [])]
    if not conditions:
        return without
    return any(_is_true(one, mark, item) for one in conditions)


def _is_true(condition: object, mark: pytest.Mark, item: pytest.Item) -> bool:
    if not isinstance(condition, str):
        return bool(condition)
    try:
        from _pytest.skipping import evaluate_condition

        return evaluate_condition(item, mark, condition)[0]
    # A text is evaluated by pytest itself, at set-up; where that fails, it is pytest that says so.
    except (Exception, pytest.fail.Exception):
        LOG.debug("%s: the condition of its mark %s fails", item.nodeid, mark.name, exc_info=True)
        return False
