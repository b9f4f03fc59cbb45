"""What one test needs of Ollama: worked out once, and kept with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.ollama.names import closest
from pytest_ollama_warmup.session.definitions import is_elsewhere, is_emulated, our_fixtures
from pytest_ollama_warmup.session.mark_arguments import read_mark, united
from pytest_ollama_warmup.session.mark_names import (
    LONG_NAME,
    MARK_HELP,
    NAME,
    NEEDING_A_NAME,
    RECORDED,
)
from pytest_ollama_warmup.session.parameters import check_direct, specs_of_parameter
from pytest_ollama_warmup.session.replays import is_replayed
from pytest_ollama_warmup.session.state import settings_of
from pytest_ollama_warmup.warmup.plan import Want

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ollama_warmup.config.model_specs import ModelSpec

_CONDITIONS = ("skip", "skipif", "xfail")


class Requirement:
    """What *item* needs by its *marks*, those that surround it included.

    Its marks are read once. Their conditions are asked each time: what a fixture sets may change
    them.
    """

    def __init__(self, item: pytest.Item, marks: list[pytest.Mark]) -> None:
        self._item = item
        names = names_in(item.config)
        if NAME not in names and our_fixtures(item):
            # The test needs a model of ours: whose mark it is, is no question.
            names = (NAME, LONG_NAME)
        ours = [mark for mark in marks if mark.name in names]
        self._marks = [] if is_emulated(item) else ours
        self._conditions = [mark for mark in marks if mark.name in _CONDITIONS]
        self._recorded = marks if any(mark.name == RECORDED for mark in marks) else []
        self._want: Want | None = None

    def want(self, *, replayed: bool = False) -> Want | None:
        """Return what the test wants; None where it has no mark of ours, or will not run.

        None too where it is replayed from a recording, unless *replayed* asks for what it names.

        Raises:
            BadMark: a mark does not fit its signature.
        """
        item = self._item
        if not self._marks or any(_prevents(mark, item) for mark in self._conditions):
            return None
        if self._recorded and not replayed and is_replayed(item, self._recorded):
            return None
        if self._want is None:
            self._want = _want_by(item, self._marks)
        return self._want


REQUIREMENT = pytest.StashKey[Requirement]()


def requirement_of(item: pytest.Item, marks: list[pytest.Mark] | None = None) -> Requirement:
    """Return what *item* needs, worked out when first asked for.

    *marks* are all of the test, where the caller has them at hand.
    """
    if REQUIREMENT not in item.stash:
        item.stash[REQUIREMENT] = Requirement(item, marks or [*item.iter_markers()])
    return item.stash[REQUIREMENT]


def _want_by(item: pytest.Item, marks: Iterable[pytest.Mark]) -> Want:
    """Return what *item* wants by its *marks*, the closest first, and by its parameter."""
    specs: dict[str, ModelSpec] = {spec.model_key: spec for spec in specs_of_parameter(item)}
    on_unavailable, of_listed = "", list[str]()
    for mark in marks:
        read = read_mark(mark, item.nodeid)
        on_unavailable = on_unavailable or read.on_unavailable
        if not read.specs:
            of_listed += read.capabilities
        for spec in read.specs:
            # The closest mark comes first and wins; one further out may add to it.
            inner = specs.setdefault(spec.model_key, spec)
            if inner is not spec:
                first = inner if inner.options or not spec.options else spec
                specs[spec.model_key] = first._replace(
                    capabilities=united(inner.capabilities, spec.capabilities),
                )
    check_direct(item, specs)
    fixture = (
        "" if specs else next((name for name in our_fixtures(item) if name in NEEDING_A_NAME), "")
    )
    return Want(
        test=item.nodeid,
        specs=tuple(specs.values()),
        fixture=fixture,
        on_unavailable=on_unavailable,
        capabilities=united(of_listed),
        elsewhere=is_elsewhere(item),
        mistyped=_mistyped(item) if fixture else "",
    )


def _mistyped(item: pytest.Item) -> str:
    """Return a mark of *item* whose name is nearly that of ours."""
    names = (mark.name for mark in item.iter_markers())
    ours = (NAME, LONG_NAME)
    return next((name for name in names if name not in ours and closest(name, ours)), "")


_NAMES_OF_SUITE = pytest.StashKey[tuple[str, ...]]()


def names_in(config: pytest.Config) -> tuple[str, ...]:
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
    return any(_is_true(condition, mark, item) for condition in conditions)


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
