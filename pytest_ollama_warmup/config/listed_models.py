"""The models that the user lists, and the aliases that stand for models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from pytest_ollama_warmup.config.model_specs import ModelSpec, parse_specs
from pytest_ollama_warmup.errors import BadSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

GivenBy = Literal["option", "environment", "configuration", "default"]


class Alias(NamedTuple):
    """A user's own name for a model."""

    name: str
    spec: ModelSpec
    source: str
    given_by: GivenBy

    @property
    def key(self) -> str:
        """The name as it compares."""
        return self.name.lower()


class Listed(NamedTuple):
    """The models that the user listed for the run, and where; *aliases* count as listed."""

    specs: tuple[ModelSpec, ...] = ()
    source: str = "default"
    given_by: GivenBy = "default"
    aliases: tuple[Alias, ...] = ()

    @property
    def all(self) -> tuple[ModelSpec, ...]:
        """The models that are listed by themselves and by an alias, each with its options once."""
        specs = [*self.specs, *(self.meant(alias.spec) for alias in self.aliases)]
        return tuple({spec.key: spec for spec in specs}.values())

    @property
    def names(self) -> tuple[str, ...]:
        """What tests call them: the alias where there is one."""
        aliases = {self.meant(alias.spec).key: alias.name for alias in self.aliases}
        return tuple(aliases.get(spec.key, spec.name) for spec in self.all)

    def meant(self, spec: ModelSpec) -> ModelSpec:
        """Return the model that *spec* means, with the options that are listed for it.

        Only a spec that names options itself makes a variant.
        """
        alias = self._alias(spec)
        if alias is not None:
            spec = _with_defaults(spec, alias.spec)._replace(name=alias.spec.name)
        defaults = self._find(spec)
        return spec if defaults is None else _with_defaults(spec, defaults)

    def given(self, spec: ModelSpec) -> tuple[str, GivenBy] | None:
        """Return who lists the model of *spec*, as messages show it; None where nobody does."""
        if any(model.model_key == spec.model_key for model in self.specs):
            return self.source, self.given_by
        alias = next(
            (entry for entry in self.aliases if entry.spec.model_key == spec.model_key), None
        )
        return None if alias is None else (alias.source, alias.given_by)

    def _alias(self, spec: ModelSpec) -> Alias | None:
        return next((alias for alias in self.aliases if alias.key == spec.name.lower()), None)

    def _find(self, spec: ModelSpec) -> ModelSpec | None:
        specs = [*self.specs, *(alias.spec for alias in self.aliases)]
        return next((model for model in specs if model.model_key == spec.model_key), None)


def parse_aliases(texts: Iterable[str], source: str, given_by: GivenBy) -> tuple[Alias, ...]:
    """Read ``NAME=SPEC`` texts, split at the first ``=``.

    Raises:
        BadSpec: names the text, *source*, and what is allowed.
    """
    aliases: dict[str, Alias] = {}
    for text in texts:
        name, equals, rest = (part.strip() for part in text.partition("="))
        if not (equals and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)):
            raise BadSpec(text, source, "expected NAME=SPEC, such as chat=llama3.2:1b")
        specs = parse_specs(rest, source)
        if len(specs) != 1:
            raise BadSpec(text, source, "an alias means one model, like chat=llama3.2:1b")
        if specs[0].name.lower() == name.lower():
            raise BadSpec(text, source, "an alias cannot mean itself")
        alias = Alias(name, specs[0], source, given_by)
        if aliases.setdefault(alias.key, alias).spec != alias.spec:
            raise BadSpec(text, source, f"{name} is given twice with different models")
    return tuple(aliases.values())


def _with_defaults(spec: ModelSpec, defaults: ModelSpec) -> ModelSpec:
    return spec._replace(
        options=spec.options or defaults.options,
        keep_alive=defaults.keep_alive if spec.keep_alive is None else spec.keep_alive,
        insecure=spec.insecure or defaults.insecure,
        digest=spec.digest or defaults.digest,
    )
