"""Messages about tests whose models are not available."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.text import count, wanted_by

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Need, Policy
    from pytest_ollama_warmup.warmup.record import Outcome


def concerned(settings: Settings, fates_of_needs: list[tuple[Need, Policy]]) -> str:
    """Say which tests want a model, what they do without it, and who says so.

    ``wanted by test_chat.py::test_tone and 3 more: 4 tests fail (CI is set)``
    """
    setting = settings.on_unavailable
    fates: dict[str, tuple[Policy, str]] = {}
    reason = f"from {setting.source}"
    if setting.value == "auto":
        # What everybody knows who runs tests at home needs no word.
        reason = settings.ci_words if settings.ci_source else ""
    for need, policy in fates_of_needs:
        own = need.on_unavailable not in ("", "auto")
        fates[need.test] = (policy, "from the mark" if own else reason)
    parts = []
    for (fate, because), number in Counter(fates.values()).items():
        does = "skipped" if fate == "skip" else "fails" if number == 1 else "fail"
        if fate == "fail" and because == reason and settings.decided_by_ci:
            because += f"; --ollama-ci=no skips {'it' if number == 1 else 'them'}"
        parts.append(f"{count(number, 'test')} {does}{f' ({because})' if because else ''}")
    return f"{wanted_by(list(fates))}: {', '.join(parts)}"


def note_in_junit(config: pytest.Config, outcome: Outcome, *, started: bool) -> None:
    """Give a JUnit file an errored test case: an empty one would look green.

    Where pytest has not *started* its session, it would not write the file either.
    """
    name = f"ollama-preload[{outcome.title}]"
    where = ("ollama-preload", None, name)
    failed = pytest.TestReport(name, where, {}, "failed", outcome.error, "setup")
    # A test case is written when its teardown is over.
    over = pytest.TestReport(name, where, {}, "passed", None, "teardown")
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(plugin, "add_global_property"):
            if not started:
                plugin.pytest_sessionstart()
            plugin.pytest_runtest_logreport(failed)
            plugin.pytest_runtest_logreport(over)
            if not started:
                plugin.pytest_sessionfinish()
