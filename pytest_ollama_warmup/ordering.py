"""The order of tests: those of one set of models together, and first those that need none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import BadMark
from pytest_ollama_warmup.marks import each_want

if TYPE_CHECKING:
    import pytest

    from pytest_ollama_warmup.settings import Settings

Group = frozenset[str]
_NONE: Group = frozenset()


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
    from pytest_ollama_warmup.warmup.plan import group_of

    listed, groups = settings.listed, list[Group]()
    # Many tests want the same.
    known: dict[object, Group] = {None: _NONE}
    for want in wants:
        key = None if want is None else (want.specs, want.fixture, want.capabilities)
        if want is not None and key not in known:
            known[key] = group_of(want, listed)
        groups.append(known[key])
    if settings.group_by_model.value and not settings.overlap.value:
        groups = _with_neighbours(items, groups)
    ranks: dict[Group, int] = {}
    places = []
    for index, (want, group) in enumerate(zip(wants, groups, strict=True)):
        later = bool(settings.overlap.value and want is not None)
        rank = ranks.setdefault(group, len(ranks)) if settings.group_by_model.value else 0
        places.append((later, rank, index))
    items[:] = [items[index] for *_, index in sorted(places)]


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
    found: list[tuple[int, Group]] = [(len(chain), _NONE) for chain in chains]
    for indices in (range(len(items)), reversed(range(len(items)))):
        last: dict[object, Group] = {}
        for index in indices:
            if groups[index]:
                last.update(dict.fromkeys(chains[index], groups[index]))
                continue
            for distance, node in enumerate(chains[index][: found[index][0]]):
                if node in last:
                    found[index] = (distance, last[node])
                    break
    return [group or found[index][1] for index, group in enumerate(groups)]
