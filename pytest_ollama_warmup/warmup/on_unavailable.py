"""What follows when a model cannot be made ready: a test is skipped or fails, or the run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.listed_models import GivenBy
    from pytest_ollama_warmup.warmup.plan import Plan

Policy = Literal["exit", "fail", "skip"]
_POLICIES: dict[str, Policy] = {"exit": "exit", "fail": "fail", "skip": "skip"}


class Verdict(NamedTuple):
    """Why a test cannot run, and what follows."""

    policy: Policy
    message: str


def decide(on_unavailable: str, override: str, given_by: GivenBy, ci: bool) -> Policy:
    """Return what a test does whose model, listed by *given_by*, cannot be made ready."""
    for choice in (override, on_unavailable):
        if choice in _POLICIES:
            return _POLICIES[choice]
    if given_by == "option":
        return "exit"
    return "fail" if ci else "skip"


def decisions(plan: Plan, key: str, on_unavailable: str, ci: bool) -> list[Policy]:
    """Return what each test does that needs *key*, should that fail, in the order of its needs.

    Where no selected test says what it needs, any may need a listed model: there is none to fail
    or to skip, so the one answer is for the run.
    """
    given_by = plan.targets[key].given_by if key in plan.targets else "default"
    if key in plan.needs:
        return [
            decide(on_unavailable, need.on_unavailable, given_by, ci) for need in plan.needs[key]
        ]
    policy = decide(on_unavailable, "", given_by, ci)
    return ["exit" if policy == "fail" and not plan.marked else policy]
