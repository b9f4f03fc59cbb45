"""The names of our marks and fixtures, and whether any test has one of them.

Part of every pytest run: what reads a mark is imported by the first test that has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import pytest

NAME = "requires_model"
LONG_NAME = "requires_ollama_model"
# The mark of pytest-recording and pytest-vcr.
RECORDED = "vcr"
_SIGNATURE = "(*specs, capabilities=(), options=None, on_unavailable=None)"
MARK = f"{NAME}{_SIGNATURE}"
MARK_HELP = (
    f"{MARK}: the test needs these Ollama models, pulled and loaded before it runs; without specs "
    "it needs the listed one. capabilities are what they must be able to do, such as tools; "
    "options are runner options such as num_ctx; on_unavailable is skip, fail, exit or auto."
)
LONG_MARK_HELP = (
    f"{LONG_NAME}{_SIGNATURE}: the same, for suites that have a mark {NAME} of their own."
)
KEEP_ORDER = "ollama_keep_order"
KEEP_ORDER_HELP = (
    f"{KEEP_ORDER}: the tests of this module or class stay together in their order, also where "
    "--ollama-group-by-model or --ollama-background reorders tests."
)
MARK_HELPS = (MARK_HELP, LONG_MARK_HELP, KEEP_ORDER_HELP)

# Who gets one of these needs Ollama, and of these two, to know which model.
NEEDING_A_NAME = ("ollama_model", "ollama_options")
NEEDING = (*NEEDING_A_NAME, "ollama_models", "ollama_client", "ollama_async_client")
HOST_FIXTURE = "ollama_host"
EMULATOR_FIXTURE = "ollama_emulator"
ELSEWHERE_FIXTURE = "_ollama_elsewhere"
_FIXTURES = frozenset({*NEEDING, HOST_FIXTURE})


def concerns(items: Iterable[pytest.Item]) -> bool:
    """Whether any of *items* has a mark or a fixture of a name of ours."""
    around, may_use = Around((NAME, LONG_NAME)), MayUseFixtures()
    # No any(): this is asked of each test of each suite.
    for item in items:  # noqa: SIM110
        if around.is_marked(item) or may_use(item):
            return True
    return False


class Around:
    """The marks of the classes and modules around items, asked once where items share them.

    *names* are those of the marks that count.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._parent = names, object()
        self._marked = False
        self.marks: list[pytest.Mark] = []
        """Those around the item that was asked about last, the closest first."""

    def is_marked(self, item: pytest.Item) -> bool:
        """Whether *item* has a mark of ours, by itself or from around it."""
        if item.parent is not self._parent:
            self._parent = item.parent
            self.marks = [] if item.parent is None else list(item.parent.iter_markers())
            self._marked = any(mark.name in self._names for mark in self.marks)
        if self._marked:
            return True
        # No any(): this is asked of each test of each suite.
        for mark in item.own_markers:  # noqa: SIM110
            if mark.name in self._names:
                return True
        return False


class MayUseFixtures:
    """Whether an item has a fixture or an argument of a name of ours; tests of one function share.

    What they share is the list of these names.
    """

    def __init__(self) -> None:
        self._names: object = None
        self._may = False

    def __call__(self, item: pytest.Item) -> bool:
        """Look at the names of *item*."""
        names = getattr(item, "fixturenames", ())
        if names is not self._names:
            self._names = names
            self._may = not _FIXTURES.isdisjoint(names)
        return self._may
