"""Values that a user gave and that cannot be used."""

from __future__ import annotations

from pytest_ollama_warmup.errors.base import WarmupError
from pytest_ollama_warmup.text import clean


class BadSetting(WarmupError, ValueError):
    """A value cannot be used; the text names it, who gave it, and what is allowed."""

    value: str
    source: str
    allowed: str
    cause = "bad setting"

    def _text(self) -> str:
        return f"{clean(self.value)!r} is not a valid {self.source}. {self.allowed}"


class Conflict(BadSetting):
    """Two settings, *value* and *source*, that cannot go together; *allowed* is what one does."""

    def _text(self) -> str:
        return (
            f"{self.value} {self.allowed}, and cannot go with {self.source}. Leave one of them out."
        )


class BadHost(BadSetting):
    """An address that no client could connect to."""

    def _text(self) -> str:
        return (
            f"{self.value!r} (from {self.source}) is not an address of an Ollama server: "
            f"{self.allowed}. Valid: HOST, HOST:PORT, http://HOST:PORT, https://HOST[:PORT][/PATH]."
        )


class MissingVariable(BadSetting):
    """A header whose value is in an environment variable that is not set."""

    def _text(self) -> str:
        return (
            f"the header {clean(self.value)} (from {self.source}) needs the environment variable "
            f"{self.allowed}, which is not set. Set it, or leave the header out."
        )


class BadSpec(BadSetting):
    """A model specification that cannot be read."""

    def _text(self) -> str:
        return f"{clean(self.value)!r} (from {self.source}): {self.allowed}"


class BadMark(BadSetting):
    """A mark that does not fit its signature or holds a value that cannot be used."""

    def _text(self) -> str:
        end = "" if self.value.endswith("?") else "."
        return f"{self.source}: {self.value}{end} The mark is {self.allowed}."


class ParameterWithoutIndirect(BadMark):
    """A parameter that names a model, and goes to the test in place of the fixture *allowed*."""

    def _text(self) -> str:
        return (
            f"{self.source}: parametrize({self.allowed!r}, ...) passes {self.value!r} to the test, "
            "and nothing loads that model: add indirect=True"
        )


class NoModelNamed(WarmupError):
    """A test asks for its model, names none, and not exactly one is listed.

    *mistyped* is a mark that was perhaps meant to name it.
    """

    test: str
    fixture: str
    listed: tuple[str, ...]
    mistyped: str = ""

    def _text(self) -> str:
        listed = self.listed
        test, which = self.test.rpartition("::")[2], "no model is listed"
        first, other = "MODEL", "run with --ollama-preload MODEL"
        if listed:
            first, other = listed[0], f'use ollama_models["{listed[0]}"].name'
            which = f"{len(listed)} are listed ({', '.join(listed)})"
        what = f"{test} uses {self.fixture} without naming a model, and {which}."
        if self.mistyped:
            return f"{what} Its mark {self.mistyped} names none: did you mean requires_model?"
        return f'{what} Add @pytest.mark.requires_model("{first}"), or {other}.'
