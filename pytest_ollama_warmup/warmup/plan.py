"""Which models a run needs, wanted by whom, and what follows when one cannot be had."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.errors import NoModelNamed
from pytest_ollama_warmup.text import wanted_by
from pytest_ollama_warmup.warmup.spec import ModelSpec, parse_specs

if TYPE_CHECKING:
    from collections.abc import Iterable

GivenBy = Literal["option", "environment", "configuration", "default"]
Policy = Literal["exit", "fail", "skip"]
_POLICIES: dict[str, Policy] = {"exit": "exit", "fail": "fail", "skip": "skip"}


@dataclass(frozen=True, slots=True)
class Listed:
    """The models that the user listed for the run, and where."""

    specs: tuple[ModelSpec, ...] = ()
    source: str = "default"
    given_by: GivenBy = "default"

    @property
    def up_front(self) -> bool:
        """Whether they are brought in every run, before collection."""
        return self.given_by in ("option", "environment")

    def find(self, spec: ModelSpec) -> ModelSpec | None:
        """Return the listed spec of the same model."""
        return next((one for one in self.specs if one.model_key == spec.model_key), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What one test asks for: models by name, or (without *specs*) whatever is listed.

    *fixture* is the fixture that needs to know which model, where the mark names none.
    """

    test: str
    specs: tuple[ModelSpec, ...] = ()
    fixture: str = ""
    on_missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only."""
        return {
            "test": self.test,
            "specs": [str(spec) for spec in self.specs],
            "fixture": self.fixture,
            "on_missing": self.on_missing,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Want:
        """Read what ``to_dict`` wrote."""
        specs = tuple(spec for text in data["specs"] for spec in parse_specs(text, "a worker"))
        return cls(**{**data, "specs": specs})


@dataclass(frozen=True, slots=True)
class Target:
    """A model to make ready; *origin* says who wants it, as messages show it."""

    spec: ModelSpec
    origin: str
    given_by: GivenBy = "default"

    @property
    def key(self) -> str:
        """The model with its runner options."""
        return self.spec.key


# The key under which tests stand that need the server, and no model by name.
SERVER = "server"


@dataclass(slots=True)
class Plan:
    """The models of a run; under each key the tests that need it, and their own ``on_missing``."""

    targets: dict[str, Target] = field(default_factory=dict)
    tests: dict[str, list[str]] = field(default_factory=dict)
    overrides: dict[str, list[str]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def marked(self) -> bool:
        """Whether any selected test says that it needs Ollama."""
        return bool(self.tests or self.problems)


def resolve(want: Want, listed: Listed) -> tuple[ModelSpec, ...]:
    """Return the specs that a test needs, options of listed ones included.

    Only a mark that names options itself makes a variant. No spec means: the server only.

    Raises:
        NoModelNamed: a fixture needs to know the model, and not exactly one is listed.
    """
    if want.specs:
        return tuple(_as_listed(spec, listed) for spec in want.specs)
    if len(listed.specs) == 1:
        return listed.specs
    if want.fixture:
        names = tuple(spec.name for spec in listed.specs)
        raise NoModelNamed(want.test, want.fixture, names)
    return ()


def make_plan(listed: Listed, wants: Iterable[Want], *, up_front: bool) -> Plan:
    """Work out what the selected tests need; *up_front* when the listed models come in any case."""
    plan = Plan()
    specs = {spec.key: spec for spec in listed.specs} if up_front else {}
    for want in wants:
        try:
            needed = resolve(want, listed)
        except NoModelNamed as exc:
            plan.problems[want.test] = str(exc)
            continue
        for spec in needed:
            specs.setdefault(spec.key, spec)
        for key in [spec.key for spec in needed] or [SERVER]:
            plan.tests.setdefault(key, []).append(want.test)
            plan.overrides.setdefault(key, []).append(want.on_missing)
    if SERVER in plan.tests:
        # A test that needs Ollama without naming a model may look up any listed one.
        specs = {spec.key: spec for spec in listed.specs} | specs
    for key, spec in specs.items():
        if listed.find(spec) is not None:
            plan.targets[key] = Target(spec, f"from {listed.source}", listed.given_by)
        else:
            plan.targets[key] = Target(spec, wanted_by(plan.tests[key]))
    return plan


def decide(on_missing: str, override: str, given_by: GivenBy, ci: bool) -> Policy:
    """Return what a test does whose model, listed by *given_by*, cannot be made ready."""
    for choice in (override, on_missing):
        if choice in _POLICIES:
            return _POLICIES[choice]
    if given_by == "option":
        return "exit"
    return "fail" if ci else "skip"


def decisions(plan: Plan, key: str, on_missing: str, ci: bool) -> list[Policy]:
    """Return what each test does that needs *key*, should that fail.

    Where no selected test says what it needs, any may need a listed model: there is none to fail
    or to skip, so the one answer is for the run.
    """
    given_by = plan.targets[key].given_by if key in plan.targets else "default"
    if key in plan.tests:
        return [decide(on_missing, one, given_by, ci) for one in plan.overrides[key]]
    one = decide(on_missing, "", given_by, ci)
    return ["exit" if one == "fail" and not plan.marked else one]


def _as_listed(spec: ModelSpec, listed: Listed) -> ModelSpec:
    one = listed.find(spec)
    if one is None:
        return spec
    if not spec.options:
        spec = replace(spec, options=one.options)
    keep_alive = one.keep_alive if spec.keep_alive is None else spec.keep_alive
    return replace(spec, keep_alive=keep_alive, insecure=spec.insecure or one.insecure)
