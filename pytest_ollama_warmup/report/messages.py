"""What a run says before its tests: the header, hints, and what follows from a failure.

Each text is put together here, of settings, a plan and outcomes; who says it is in ``session``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.ollama.host import again, names, shown_without_login
from pytest_ollama_warmup.report.progress import INDENT
from pytest_ollama_warmup.text import count, explained, origin, wanted_by, wrapped
from pytest_ollama_warmup.warmup.on_unavailable import decide, decisions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.on_unavailable import Policy
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Need, Plan

    Fate = tuple[Need, Policy]


def header(settings: Settings, *, verbose: bool, width: int = 0) -> str:
    """Say where the server is and what is listed, each with its source.

    Of many models and hosts as many are named as fit on two lines of *width*, 0 for no limit. If
    *verbose*, all are, and what follows when a model is not available.
    """
    hosts = [host.url for host in settings.pool]
    models = [str(spec) for spec in settings.listed.specs]
    if verbose:
        return f"{_header(settings, hosts, models)}, unavailable models: {policy(settings)}"
    shown, urls = len(models), len(hosts)
    while True:
        text = _header(settings, _some(hosts, urls), _some(models, shown))
        if len(wrapped(f"ollama: {text}", width, INDENT)) <= 2 or shown <= 1 >= urls:
            return text
        shown, urls = (shown - 1, urls) if shown > 1 else (shown, urls - 1)


def _header(settings: Settings, hosts: list[str], models: list[str]) -> str:
    listed = settings.listed
    what = f", preload: {', '.join(models)} ({listed.source})" if models else ""
    return f"{', '.join(hosts)} ({settings.host.source}){what}"


def _some(names: list[str], number: int) -> list[str]:
    left_out = len(names) - number
    return (
        names
        if left_out <= 0
        else [*names[: number - 1], f"{names[number - 1]} and {left_out} more"]
    )


def policy(settings: Settings) -> str:
    """Say what happens to the tests of a model that is missing, and who says so."""
    listed, on_unavailable = settings.listed, settings.on_unavailable
    if on_unavailable.value != "auto":
        return f"{on_unavailable.value} (from {on_unavailable.source})"
    what = f"{'fail' if settings.ci else 'skip'} ({settings.ci_words})"
    ends = listed.given_by == "option" and listed.specs
    return f"{what}, but listed ones end the run" if ends else what


def hints(settings: Settings) -> Iterator[str]:
    """Yield what the user may have meant otherwise."""
    for host in again(settings.hosts):
        yield f"{host.url} is given more than once ({origin(host.source)}): it is one host."
    for host in settings.hosts:
        if host.dropped:
            yield (
                f"{host.dropped} at the end of the address ({origin(host.source)}) is a path of "
                f"the API: {host.url} is used."
            )
    models = os.environ.get("OLLAMA_MODELS", "")
    if not settings.listed.specs and ":" in models and not Path(models).is_absolute():
        yield explained(
            "OLLAMA_MODELS looks like a list of models, but is the server's storage directory; "
            "list them in OLLAMA_PRELOAD_MODELS.",
            "models-variable",
        )
    elsewhere = os.environ.get("OLLAMA_BASE_URL", "").strip()
    if elsewhere and not any(names(elsewhere, host) for host in settings.pool):
        shown = shown_without_login(elsewhere)
        yield explained(
            f"OLLAMA_BASE_URL points elsewhere ({shown}), to another server. "
            "--ollama-export OLLAMA_BASE_URL sets it to this one.",
            "base-url-elsewhere",
        )


class Failure(NamedTuple):
    """What is wrong and what to do, in *error*; whom that concerns and how, in *who*.

    *skips* is whether all that follows is that tests are skipped. *warning* is given where nothing
    follows, although the models were listed.
    """

    error: str
    who: str
    skips: bool
    warning: str = ""


class Consequences:
    """What each test of a plan does, and the run, should a model not be made ready.

    Before tests are *collected* nobody knows which there are to fail or to skip.
    """

    def __init__(self, plan: Plan, settings: Settings, *, collected: bool) -> None:
        self._plan, self._settings, self._collected = plan, settings, collected

    def decisions(self, key: str) -> list[Policy]:
        """Return what each test does that needs *key*, should that fail."""
        plan, settings = self._plan, self._settings
        if self._collected:
            return decisions(plan, key, settings.on_unavailable.value, settings.ci)
        given_by = plan.targets[key].given_by
        policy = decide(settings.on_unavailable.value, "", given_by, settings.ci)
        return ["exit" if policy == "exit" else "skip"]

    def fates(self, keys: Iterable[str]) -> list[Fate]:
        """Return each test that needs one of *keys*, and what it does."""
        needs = self._plan.needs
        return [
            fate
            for key in dict.fromkeys(keys)
            for fate in zip(needs.get(key, []), self.decisions(key), strict=False)
        ]

    def ends_run(self, key: str) -> bool:
        """Whether the run ends where *key* cannot be made ready."""
        return "exit" in self.decisions(key)

    def only_skips(self, key: str) -> bool:
        """Whether all that follows is that tests are skipped."""
        return self._collected and {"skip"} == set(self.decisions(key))

    def ending(self, outcomes: Iterable[Outcome]) -> Outcome | None:
        """Return the first of *outcomes* that ends the run, if any does."""
        failed = (outcome for outcome in outcomes if not outcome.ready)
        return next((outcome for outcome in failed if self.ends_run(outcome.key)), None)

    def way_out(self, outcome: Outcome) -> str:
        """Say what makes the run go on that *outcome* ends."""
        plan, settings = self._plan, self._settings
        if any(need.on_unavailable == "exit" for need in plan.needs.get(outcome.key, ())):
            return "The mark of a test that needs it says on_unavailable='exit'."
        target = plan.targets.get(outcome.key)
        by_option = target is not None and target.given_by == "option"
        if settings.decided_by_ci and not by_option:
            return f"{settings.decided_by_ci} is set; --ollama-ci=no goes on without it."
        return "--ollama-on-unavailable=skip goes on without it."

    def failures(self, outcomes: Sequence[Outcome], server: Outcome | None) -> Iterator[Failure]:
        """Yield what is to be said of *outcomes*, once for each error."""
        failed: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            if not outcome.ready:
                failed.setdefault(outcome.error, []).append(outcome)
        ready = {outcome.key for outcome in outcomes if outcome.ready}
        for error, alike in failed.items():
            keys = [outcome.key for outcome in alike]
            if server is not None and any(_is_of(server, outcome) for outcome in alike):
                keys.append(server.key)
                server = None
            fates = self.fates(keys)
            tried = any(outcome.cause == "unknown model" for outcome in alike)
            who, warning = self._only_at(alike, ready) or self._who(fates, tried=tried), ""
            if not (fates or self._plan.marked):
                models = ", ".join(self._plan.targets[key].spec.title for key in keys)
                warning = f"{models}: listed, and not ready; all tests run without"
            yield Failure(error, who, self._skips(fates), warning)

    def unable(self, outcome: Outcome) -> Iterator[tuple[Outcome, Failure, bool]]:
        """Yield, for a model that is ready, what tests ask of it that it cannot do.

        With each the outcome as a failure, and whether that ends the run.
        """
        asking: dict[tuple[str, ...], list[Fate]] = {}
        settings = self._settings
        for need in self._plan.needs.get(outcome.key, ()) if outcome.ready else ():
            if need.capabilities:
                # The model is there: what is listed is no matter of one test's wishes.
                policy = decide(
                    settings.on_unavailable.value, need.on_unavailable, "default", settings.ci
                )
                asking.setdefault(need.capabilities, []).append((need, policy))
        for capabilities, fates in asking.items():
            failed = outcome.for_tests_that_need(capabilities, "")
            if not failed.ready:
                ends = any(policy == "exit" for _, policy in fates)
                failure = Failure(failed.error, concerned(settings, fates), self._skips(fates))
                yield failed, failure, ends

    def unchecked(self, outcome: Outcome) -> bool:
        """Whether tests ask of a model what its server does not say that it can do."""
        needs = self._plan.needs.get(outcome.key, ())
        asked = any(need.capabilities for need in needs)
        return outcome.ready and outcome.capabilities is None and asked

    def _only_at(self, failed: list[Outcome], ready: set[str]) -> str:
        """Say where a model is not ready that is on other hosts; empty where it is on none."""
        keys = {outcome.key for outcome in failed}
        policies = {policy for _, policy in self.fates(keys)}
        if not (keys <= ready and policies):
            return ""
        urls = ", ".join(dict.fromkeys(outcome.host for outcome in failed))
        what = " or ".join(
            {"skip": "are skipped", "fail": "fail"}[policy] for policy in sorted(policies)
        )
        return f"so it is at {urls}, and not elsewhere: tests that need it {what} there"

    def _who(self, fates: list[Fate], *, tried: bool) -> str:
        """Say what the tests do that are concerned, and the flag that makes them do otherwise."""
        if fates:
            return concerned(self._settings, fates, tried=tried)
        if self._plan.marked:
            return "no selected test needs it"
        return "no test says that it needs it: all run without it"

    def _skips(self, fates: list[Fate]) -> bool:
        return not fates or {"skip"} == {policy for _, policy in fates}


def _is_of(server: Outcome, failed: Outcome) -> bool:
    """Whether a model has *failed* since its server did not answer."""
    of_server = failed.failed_by == "server" and failed.host == server.host
    return of_server and not server.ready


def concerned(settings: Settings, fates_of_needs: list[Fate], *, tried: bool = False) -> str:
    """Say which tests want a model, what they do without it, and who says so.

    *tried* is whether its pull was, so that some expect more than skips.

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
        if fate == "skip" and tried and not because:
            because = f"--ollama-on-unavailable=fail fails {'it' if number == 1 else 'them'}"
        parts.append(f"{count(number, 'test')} {does}{f' ({because})' if because else ''}")
    return f"{wanted_by(list(fates))}: {', '.join(parts)}"
