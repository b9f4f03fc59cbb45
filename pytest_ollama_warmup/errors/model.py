"""Models that cannot be made ready, and answers that are errors."""

from __future__ import annotations

import re

from pytest_ollama_warmup.errors.base import Cause, WarmupError
from pytest_ollama_warmup.text import seconds, without_provider

# Of Ollama v0.33 (types/model/capability.go).
CAPABILITIES = (
    "completion",
    "tools",
    "insert",
    "vision",
    "embedding",
    "thinking",
    "image",
    "audio",
)
# The cause of a failed pull or load in a few words: the server's may be a long chain of errors.
_IN_WORDS: dict[Cause, str] = {
    "registry unreachable": "registry unreachable",
    "registry without TLS": "registry unreachable",
    "registry login": "access refused",
    "disk full": "no space on the disk",
    "stalled": "the download stalled",
    "damaged download": "the download is damaged",
    "out of memory": "not enough memory",
    "gateway": "a gateway answered",
    "runner lost": "the server went away",
    "server lost": "the server went away",
    "server silent": "the server went away",
}


class ModelError(WarmupError):
    """The model *model* cannot be made ready; *origin* says who lists it, empty for nobody."""

    model: str
    origin: str

    @property
    def _who(self) -> str:
        return f"{self.model} ({self.origin})" if self.origin else self.model


def _meant(name: str, model: str, alias: str) -> str:
    if alias:
        return f" Did you mean the alias {alias}?"
    if name:
        return f" Did you mean {name}, which is there?"
    if (bare := without_provider(model)) != model:
        return f" Did you mean {bare}? Ollama does not know the prefix {model.removesuffix(bare)}."
    return ""


def _or_alias(model: str, origin: str, alias: str) -> str:
    # One bare word may be an alias that nobody has defined.
    bare = re.fullmatch(r"[\w.-]+", model) and "alias" not in origin and not alias
    return f"; for an alias add --ollama-alias {model}=MODEL" if bare else ""


class NotPulled(ModelError):
    """The model is not on the server, and nothing allows its download.

    *meant* is a local model whose name is nearly the same, *alias* such an alias. *never* is
    whether ``--ollama-pull=never`` forbids the download.
    """

    cloud: bool = False
    meant: str = ""
    alias: str = ""
    never: bool = False
    cause = "not pulled"
    _brief = "not pulled"

    def _text(self) -> str:
        if self.cloud:
            return (
                f"{self._who}: the server does not offer this cloud model.\n"
                "Sign it in with 'ollama signin'; models of the cloud are never pulled."
            )
        verb = "Correct the name, or run" if self.meant or self.alias else "Run"
        other = "" if self.never else ", or pytest with --ollama-pull=missing"
        return (
            f"{self._who} is not pulled{', by --ollama-pull=never' if self.never else ''}."
            f"{_meant(self.meant, self.model, self.alias)}\n"
            f"{verb} 'ollama pull {self.model}'{other}"
            f"{_or_alias(self.model, self.origin, self.alias)}."
        )


class UnknownModel(ModelError):
    """The registry has no model of this name."""

    words: str
    meant: str = ""
    alias: str = ""
    cause = "unknown model"
    _brief = "not in the registry"

    def _text(self) -> str:
        cure = "Correct the name" if self.meant or self.alias else "Check name and tag"
        return (
            f"{self._who}: the registry has no such model ({self.words})."
            f"{_meant(self.meant, self.model, self.alias)}\n"
            f"{cure}{_or_alias(self.model, self.origin, self.alias)}."
        )


class OtherDigest(ModelError):
    """The server has the model in another version than the one that is pinned."""

    pinned: str
    digest: str
    cause = "other digest"
    _brief = "digest {digest:.12}, pinned {pinned:.12}"

    def _text(self) -> str:
        return (
            f"{self._who} is another version than the pinned one: the server has "
            f"sha256:{self.digest}, pinned is sha256:{self.pinned}.\nRun pytest with "
            "--ollama-pull=always if the registry has the pinned one, or change the pin."
        )


class LacksCapability(ModelError):
    """The model cannot do what a test asks of it."""

    missing: tuple[str, ...]
    has: tuple[str, ...]
    cause = "missing capability"

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"cannot do {', '.join(self.missing)}"

    def _text(self) -> str:
        odd = [capability for capability in self.missing if capability not in CAPABILITIES]
        note = ""
        if odd:
            note = f" Servers know {', '.join(CAPABILITIES)} (v0.33), not {', '.join(odd)}."
        return (
            f"{self._who} cannot do {', '.join(self.missing)}: the server says "
            f"it can do {', '.join(self.has) or 'nothing'}.{note}\nUse a model that can, "
            "or change capabilities= of the mark."
        )


class PullFailed(ModelError):
    """The download ended without the model."""

    words: str
    advice: str
    cause: Cause = "other"

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return _IN_WORDS.get(self.cause, "the pull failed")

    def _text(self) -> str:
        return f"{self._who} could not be pulled: {self.words}.\n{self.advice}"


class LoadFailed(ModelError):
    """The server has the model, and could not load it."""

    words: str
    advice: str
    cause: Cause = "other"

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return _IN_WORDS.get(self.cause, "does not load")

    def _text(self) -> str:
        # The server's words hold quotes now and then.
        quote = "'" if '"' in self.words else '"'
        return f"{self.model} does not load: {quote}{self.words}{quote}.\n{self.advice}"


class ApiError(WarmupError):
    """An answer of the server that is an error, inside whatever HTTP status it came.

    *after_s* is how long the request had run by then.
    """

    request: str
    status: int
    words: str
    cause: Cause = "other"
    after_s: float = 0.0

    def _text(self) -> str:
        return f"{self.request}: HTTP {self.status}: {self.words}"


class WaitedTooLong(WarmupError):
    """Another process holds the work on a model, and has shown no progress for *waited_s*."""

    what: str
    waited_s: float
    cause = "waited too long"

    def _text(self) -> str:
        return (
            f"{self.what}: another process works on it and has shown no progress for "
            f"{seconds(self.waited_s)} (--ollama-load-timeout). End that process, or run again."
        )
