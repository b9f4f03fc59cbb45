"""Tests that are skipped because the plugin has changed the order of tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ollama_warmup.session.state import directory_of, process_name, settings_of
from pytest_ollama_warmup.text import clean, count, explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

# Marks of pytest-dependency, pytest-depends, and pytest's own recipe for steps.
DEPENDING = ("dependency", "depends", "incremental")
# "test_report depends on test_judge", as pytest-dependency says it.
_DEPENDS = re.compile(r"\bdepends on (\S.*)")


def watch_moved(
    config: pytest.Config, collected: Sequence[pytest.Item], ordered: Sequence[pytest.Item]
) -> None:
    """Note from now on which tests are skipped because they run before others than collected.

    Registered only where tests say that they depend on others: a hook for each report is felt.
    """
    if any(_depends(item) for item in collected):
        config.pluginmanager.register(_Moved(config, collected, ordered), "ollama_warmup_moved")


def _depends(item: pytest.Item) -> bool:
    return any(mark.name in DEPENDING for mark in item.iter_markers())


class _Moved:
    def __init__(
        self,
        config: pytest.Config,
        collected: Sequence[pytest.Item],
        ordered: Sequence[pytest.Item],
    ) -> None:
        self._config, self._collected = config, collected
        self._before = {item.nodeid: index for index, item in enumerate(collected)}
        self._now = {item.nodeid: index for index, item in enumerate(ordered)}
        self._notes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See whether a test was skipped that would not have been in its order."""
        if not (report.skipped and report.when == "setup") or hasattr(report, "wasxfail"):
            return
        if report.nodeid not in self._before or not isinstance(report.longrepr, tuple):
            return
        item = self._collected[self._before[report.nodeid]]
        reason = clean(report.longrepr[2].removeprefix("Skipped: "))
        if not _depends(item) or not (others := self._overtaken(item, reason)):
            return
        self._notes[item.nodeid] = self._words(item, reason, others)
        directory_of(self._config).leave(process_name(self._config), "reordered", self._notes)

    def _overtaken(self, item: pytest.Item, reason: str) -> list[pytest.Item]:
        """Return those on which *item* may depend, and which now come after it."""
        place = self._now[item.nodeid]
        others = [
            other
            for other in self._collected[: self._before[item.nodeid]]
            if self._now[other.nodeid] > place
        ]
        if (match := _DEPENDS.search(reason)) is None:
            return [other for other in others if _file(other) == _file(item)]
        name = match[1].rpartition("::")[2]
        return [other for other in others if name in _names(other)]

    def _words(self, item: pytest.Item, reason: str, others: list[pytest.Item]) -> str:
        settings = settings_of(self._config)
        by = " and ".join(
            setting.source
            for setting in (settings.group_by_model, settings.background)
            if setting.value
        )
        before = others[0].nodeid if len(others) == 1 else count(len(others), "test")
        if any(_file(other) == _file(item) for other in others):
            cure = (
                "--ollama-keep-order=module, or @pytest.mark.ollama_keep_order on the module, "
                "keeps their order."
            )
        else:
            cure = f"No setting keeps the order of several files: leave out {by}."
        return explained(
            f"{item.nodeid} was skipped ({reason}), as {by} has moved it in front of {before}.\n"
            f"{cure}",
            "moved",
        )


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _names(item: pytest.Item) -> Iterable[object]:
    return item.name, *(mark.kwargs.get("name") for mark in item.iter_markers("dependency"))
