"""The order of tests: those of one set of models together, and first those that need none.

Tests that build on each other are a *story*, which is kept whole: a class, or a module that says so
by a mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_ollama_warmup.errors import BadMark
from pytest_ollama_warmup.session.mark_names import KEEP_ORDER
from pytest_ollama_warmup.session.marks import each_want, has_model_of_parameter
from pytest_ollama_warmup.session.reordered import DEPENDING, watch_moved
from pytest_ollama_warmup.session.state import is_looking, is_worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Want

Group = frozenset[str]
_NONE: Group = frozenset()

# Those, and marks of pytest-order and pytest-xdist; fixtures of pytest-steps.
_ORDERED = {*DEPENDING, "order", "xdist_group"}
_STEP_FIXTURES = {"test_step", "steps_data"}


class Kept(NamedTuple):
    """Tests of one story whose *group*, for pytest-xdist, is not what each needs by itself.

    A story that needs several sets of models has a *name*: it runs on one worker, and alone, as
    its tests change the models in memory.
    """

    group: list[str]
    name: str
    tests: list[str]


# For the controller of pytest-xdist, which knows the wants of tests only.
KEPT = pytest.StashKey[list[Kept]]()


def order(items: list[pytest.Item], settings: Settings) -> None:
    """Sort *items* in place as the settings ask for; what they do not ask about stays.

    The same items in the same order give the same order: workers of pytest-xdist must agree.
    """
    try:
        wants = list(each_want(items))
    except BadMark:
        # It ends the run a little later, with its message.
        return
    if not any(wants):
        return
    config, grouped = items[0].config, settings.group_by_model.value
    own = _groups_of(wants, settings)
    stories = _stories(items, own, settings.keep_order.value)
    sets: dict[object, list[Group]] = {}
    waiting = {story for story, want in zip(stories, wants, strict=True) if want is not None}
    for story, group in zip(stories, own, strict=True):
        of_story = sets.setdefault(story, [])
        if group and group not in of_story:
            of_story.append(group)
    groups = _followed(items, stories, sets, settings) if grouped else own
    ranks: dict[Group, int] = {}
    places = []
    for index, (story, group) in enumerate(zip(stories, groups, strict=True)):
        later = bool(settings.background.value and story in waiting)
        rank = ranks.setdefault(group, len(ranks)) if grouped else 0
        # One that needs several sets comes last in its group: it ends with other models in memory.
        places.append((later, rank, grouped and len(sets[story]) > 1, index))
    collected = list(items)
    items[:] = [items[index] for *_, index in sorted(places)]
    if grouped and is_worker(config):
        config.stash[KEPT] = _kept(collected, wants, stories, sets)
    if items != collected and not is_looking(config):
        watch_moved(config, collected, items)


def _followed(
    items: list[pytest.Item],
    stories: list[object],
    sets: dict[object, list[Group]],
    settings: Settings,
) -> list[Group]:
    """Return for each item the group that its story follows."""
    # A story begins with the models of that group: that saves a load.
    groups = [next(iter(sets[story]), _NONE) for story in stories]
    if settings.background.value:
        return groups
    groups = _with_neighbours(items, groups)
    of_story: dict[object, Group] = {}
    return [of_story.setdefault(story, group) for story, group in zip(stories, groups, strict=True)]


def _groups_of(wants: Iterable[Want | None], settings: Settings) -> list[Group]:
    from pytest_ollama_warmup.warmup.plan import group_of

    listed, groups = settings.listed, list[Group]()
    # Many tests want the same.
    by_want: dict[object, Group] = {None: _NONE}
    for want in wants:
        key = None if want is None else (want.specs, want.fixture, want.capabilities)
        if want is not None and key not in by_want:
            by_want[key] = group_of(want, listed)
        groups.append(by_want[key])
    return groups


def _stories(items: list[pytest.Item], groups: list[Group], keep: str) -> list[object]:
    """Return for each item the story that it belongs to; an item that has none is one by itself."""
    # On a test the mark means the class or the module that it is in.
    whole: set[object] = {item.parent for item in items if _has_mark(item.own_markers)}
    if keep == "auto":
        whole |= {_file_of(item) for item in items if _is_ordered(item)}
    of_parent: dict[object, object] = {}
    stories: list[object] = []
    for item, group in zip(items, groups, strict=True):
        if item.parent not in of_parent:
            of_parent[item.parent] = _story_around(item, keep, whole)
        story = of_parent[item.parent]
        if keep in ("auto", "class") and (story is None or _is_class(story)):
            outermost = next((node for node in item.listchain() if _is_class(node)), None)
            # A class that runs once for each of several models has a story with each.
            by_model = story is None and outermost and has_model_of_parameter(item)
            story = (outermost, group) if by_model else outermost
        stories.append(item if story is None else story)
    return stories


def _story_around(item: pytest.Item, keep: str, whole: set[object]) -> object:
    """Return the module or class around *item* that is kept whole by a mark or a setting."""
    for node in item.listchain()[:-1]:
        if (
            node in whole
            or _has_mark(node.own_markers)
            or (keep == "module" and isinstance(node, pytest.File))
        ):
            return node
    return None


def _has_mark(marks: Iterable[pytest.Mark]) -> bool:
    return any(mark.name == KEEP_ORDER for mark in marks)


def _is_class(node: object) -> bool:
    return isinstance(node, pytest.Class)


def _file_of(item: pytest.Item) -> object:
    return next((node for node in item.listchain() if isinstance(node, pytest.File)), None)


def _is_ordered(item: pytest.Item) -> bool:
    """Whether *item* says that it depends on the order of tests."""
    if not _STEP_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        return True
    for mark in item.iter_markers():
        if mark.name in _ORDERED:
            return True
        if mark.name == "usefixtures" and any(map(_is_of_steps, mark.args)):
            return True
    return False


def _is_of_steps(name: object) -> bool:
    return not {"step", "steps", "incremental"}.isdisjoint(str(name).split("_"))


def _kept(
    items: Sequence[pytest.Item],
    wants: Sequence[Want | None],
    stories: Sequence[object],
    sets: dict[object, list[Group]],
) -> list[Kept]:
    kept: dict[object, Kept] = {}
    for item, want, story in zip(items, wants, stories, strict=True):
        of_story = sets[story]
        if len(of_story) > 1 or (of_story and want is None):
            if story not in kept:
                name = item.nodeid if len(of_story) > 1 else ""
                kept[story] = Kept(sorted(_NONE.union(*of_story)), name, [])
            kept[story].tests.append(item.nodeid)
    return list(kept.values())


def _with_neighbours(items: list[pytest.Item], groups: list[Group]) -> list[Group]:
    """Put each test that needs no model into the group of the nearest one that needs some.

    That is the one before it, or else after it, in the innermost class, module or package that has
    one: what is set up for that is then not set up twice.
    """
    of_parent: dict[object, list[object]] = {}
    chains = []
    for item in items:
        if item.parent not in of_parent:
            of_parent[item.parent] = [*reversed(item.listchain()[:-1])]
        chains.append(of_parent[item.parent])
    nearest: list[tuple[int, Group]] = [(len(chain), _NONE) for chain in chains]
    for indices in (range(len(items)), reversed(range(len(items)))):
        last: dict[object, Group] = {}
        for index in indices:
            if groups[index]:
                last.update(dict.fromkeys(chains[index], groups[index]))
                continue
            for distance, node in enumerate(chains[index][: nearest[index][0]]):
                if node in last:
                    nearest[index] = (distance, last[node])
                    break
    return [group or nearest[index][1] for index, group in enumerate(groups)]
