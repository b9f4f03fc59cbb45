"""What tests do whose models cannot be had, as it is told."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.text import count

if TYPE_CHECKING:
    from pytest_ollama_warmup.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Need, Policy
    from pytest_ollama_warmup.warmup.record import Outcome


def told(settings: Settings, fates_of_needs: list[tuple[Need, Policy]], *, server: bool) -> str:
    """Say what tests do, and why; *server* is whether it is that which they lack, and no model."""
    setting = settings.on_unavailable
    fates: dict[str, tuple[Policy, str]] = {}
    reason = settings.ci_words if setting.value == "auto" else f"from {setting.source}"
    for need, policy in fates_of_needs:
        own = need.on_unavailable not in ("", "auto")
        fates[need.test] = (policy, "from the mark" if own else reason)
    parts = []
    for (fate, because), number in Counter(fates.values()).items():
        one = number == 1
        needs, be, them = ("needs", "is", "it") if one else ("need", "are", "them")
        which = count(number, "test")
        if fate == "skip":
            does = f"Skipped: {which} that {needs} it" if server else f"Its {which} {be} skipped"
            other = f"; --ollama-on-unavailable=fail makes {them} fail"
            parts.append(does + (f" ({because})" if because == "from the mark" else other))
        else:
            fail = "fails" if number == 1 else "fail"
            does = f"Failed: {which} that {needs} it" if server else f"Its {which} {fail}"
            if settings.ci_variable and because == reason and setting.value == "auto":
                because += f"; --ollama-ci=no skips {them}"
            parts.append(f"{does} ({because})")
    return " ".join(f"{part}." for part in parts)


def note_in_junit(config: pytest.Config, outcome: Outcome) -> None:
    """Give a JUnit file an errored test case: an empty one would look green."""
    name = f"ollama-preload[{outcome.title}]"
    where = ("ollama-preload", None, name)
    failed = pytest.TestReport(name, where, {}, "failed", outcome.error, "setup")
    # A test case is written when its teardown is over.
    over = pytest.TestReport(name, where, {}, "passed", None, "teardown")
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(plugin, "add_global_property"):
            plugin.pytest_runtest_logreport(failed)
            plugin.pytest_runtest_logreport(over)
