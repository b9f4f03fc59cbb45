"""Which models a run needs, wanted by whom, and what follows when one cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.config.model_specs import ModelSpec, parse_specs
from pytest_ollama_warmup.errors import NoModelNamed
from pytest_ollama_warmup.text import at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_ollama_warmup.config.listed_models import GivenBy, Listed


class Want(NamedTuple):
    """What one test asks for: models by name, or (without *specs*) whatever is listed.

    *fixture* is the fixture that needs to know which model, where the mark names none.
    *capabilities* are what the listed one must be able to do then. *elsewhere* is whether the suite
    gives the test another server than the run's, by its own fixture ``ollama_host``. *mistyped* is
    a mark of the test whose name is nearly that of ours.
    """

    test: str
    specs: tuple[ModelSpec, ...] = ()
    fixture: str = ""
    on_unavailable: str = ""
    capabilities: tuple[str, ...] = ()
    elsewhere: bool = False
    mistyped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only."""
        return {
            "test": self.test,
            "specs": [[str(spec), spec.capabilities] for spec in self.specs],
            "fixture": self.fixture,
            "on_unavailable": self.on_unavailable,
            "capabilities": self.capabilities,
            "elsewhere": self.elsewhere,
            "mistyped": self.mistyped,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Want:
        """Read what ``to_dict`` wrote."""
        specs = tuple(
            spec._replace(capabilities=tuple(capabilities))
            for text, capabilities in data["specs"]
            for spec in parse_specs(text, "a worker")
        )
        return cls(**{**data, "specs": specs, "capabilities": tuple(data["capabilities"])})


class Target(NamedTuple):
    """A model to make ready on a host; *origin* says who lists it, as messages show it.

    *request* is the suite's own warm-up request, the body of a POST; None for ours. *learned* is
    the context that tests of earlier runs used, 0 where that is not known or the spec names one.
    *host* is the URL of the server.
    """

    spec: ModelSpec
    origin: str
    given_by: GivenBy = "default"
    request: Mapping[str, Any] | None = None
    learned: int = 0
    host: str = ""

    @property
    def key(self) -> str:
        """The model with its runner options."""
        return self.spec.key

    @property
    def options(self) -> dict[str, Any]:
        """The options to load it with: those of the spec, and the context of earlier runs."""
        learned = {"num_ctx": self.learned} if self.learned else {}
        return {**learned, **dict(self.spec.options)}

    @property
    def id(self) -> str:
        """The same, distinct from those on other hosts of the run."""
        return at(self.key, self.host)


# The key under which tests stand that need the server, and no model by name.
SERVER = "server"


class Need(NamedTuple):
    """What a test says in a plan: its ``on_unavailable``, and what its model must be able to do."""

    test: str
    on_unavailable: str = ""
    capabilities: tuple[str, ...] = ()


class Plan:
    """The models of a run, and under each key who needs it."""

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}
        self.needs: dict[str, list[Need]] = {}
        self.problems: dict[str, str] = {}

    @property
    def marked(self) -> bool:
        """Whether any selected test says that it needs Ollama."""
        return bool(self.needs or self.problems)

    @property
    def tests(self) -> dict[str, list[str]]:
        """The tests that need each model, by key."""
        return {key: [need.test for need in needs] for key, needs in self.needs.items()}


def resolve(want: Want, listed: Listed) -> tuple[ModelSpec, ...]:
    """Return the specs that a test needs, options of listed ones included.

    No spec means: the only listed model, else the server only.

    Raises:
        NoModelNamed: a fixture needs to know the model, and not exactly one is listed.
    """
    if want.specs:
        return tuple({spec.key: spec for spec in map(listed.meant, want.specs)}.values())
    if len(listed.all) == 1:
        return (listed.all[0]._replace(capabilities=want.capabilities),)
    if want.fixture or want.capabilities:
        by = want.fixture or "capabilities"
        raise NoModelNamed(want.test, by, listed.names, want.mistyped)
    return ()


def group_of(want: Want, listed: Listed) -> frozenset[str]:
    """Return the keys of the models that a test needs in memory at the same time."""
    try:
        # A test that needs Ollama without naming a model may look up any listed one.
        needed = resolve(want, listed) or listed.all
    except NoModelNamed:
        return frozenset()
    return frozenset(spec.key for spec in needed)


def groups_of(wants: Iterable[Want], listed: Listed) -> list[frozenset[str]]:
    """Return the distinct sets of models that tests need, in the order of their first tests."""
    return list(dict.fromkeys(group for want in wants if (group := group_of(want, listed))))


def make_plan(listed: Listed, wants: Iterable[Want], *, up_front: bool) -> Plan:
    """Work out what the selected tests need; *up_front* when the listed models come in any case."""
    plan = Plan()
    specs = {spec.key: spec for spec in listed.specs} if up_front else {}
    # Many tests want the same.
    resolutions: dict[tuple[ModelSpec, ...], dict[str, ModelSpec]] = {}
    for want in wants:
        needed = resolutions.get(want.specs) if want.specs else None
        if needed is None:
            try:
                needed = {spec.key: spec for spec in resolve(want, listed)}
            except NoModelNamed as exc:
                plan.problems[want.test] = str(exc)
                continue
            resolutions[want.specs] = needed
        for key, spec in needed.items():
            specs.setdefault(key, spec)
            need = Need(want.test, want.on_unavailable, spec.capabilities)
            plan.needs.setdefault(key, []).append(need)
        if not needed:
            plan.needs.setdefault(SERVER, []).append(Need(want.test, want.on_unavailable))
    if SERVER in plan.needs:
        # A test that needs Ollama without naming a model may look up any listed one.
        specs = {spec.key: spec for spec in listed.all} | specs
    for key, spec in specs.items():
        plan.targets[key] = target_of(spec, listed)
    return plan


def variants_of(plan: Plan) -> dict[str, list[int]]:
    """Return, by model, the values of ``num_ctx`` that specs name; empty where none does."""
    variants: dict[str, list[int]] = {}
    for target in plan.targets.values():
        if num_ctx := dict(target.spec.options).get("num_ctx"):
            variants.setdefault(target.spec.model_key, []).append(num_ctx)
    return variants


def target_of(spec: ModelSpec, listed: Listed) -> Target:
    """Return what is to be made ready for *spec*, and who lists it, if anybody does."""
    lister = listed.given(spec)
    if lister is not None:
        return Target(spec, f"from {lister[0]}", lister[1])
    return Target(spec, "")
