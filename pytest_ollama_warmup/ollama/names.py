"""Model names, as Ollama parses and compares them."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.text import without_provider

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# What each part may hold after its first character (a letter, a digit or "_"), and its greatest
# length (v0.33, types/model/name.go). ASCII only: re's \w would let "é" pass.
_PARTS = {
    "host": (re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*"), 350),
    "namespace": (re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*"), 80),
    "model": (re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*"), 80),
    "tag": (re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*"), 80),
}


class ModelName(NamedTuple):
    """The four parts of a model's name, spelled as given; *key* is the same whatever their case.

    A name that says where it runs keeps saying so in its tag, ``cloud`` or ``…-cloud``, so that a
    model in the cloud never has the key of the local one of the same name.
    """

    host: str
    namespace: str
    model: str
    tag: str

    # A suite may name few models in many marks.
    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> ModelName:
        """Read a name; what it leaves out is ``registry.ollama.ai/library/…:latest``.

        A scheme before the host is dropped, as the server does; it needs all three parts behind
        it. ``:local`` at the end means the name without it (v0.33, ``internal/modelref``).

        Raises:
            ValueError: the server would call it an invalid model name; says why.
        """
        path, tag = _split_tag(_without_source(text))
        scheme, schemed, rest = path.partition("://")
        parts = (rest if schemed else path).split("/")
        if schemed and len(parts) != 3:
            raise ValueError(f"after {scheme}:// a host, a namespace and a model are needed")
        if len(parts) > 3:
            raise ValueError("more than a host, a namespace and a model")
        missing = (DEFAULT_HOST, DEFAULT_NAMESPACE)[: 3 - len(parts)]
        host, namespace, model = (*missing, *parts)
        for part, value in zip(_PARTS, (host, namespace, model, tag), strict=True):
            _check(part, value)
        return cls(host, namespace, model, tag)

    @property
    def key(self) -> str:
        """All four parts in lower case: the same for all names of one model."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}".lower()

    @property
    def short(self) -> str:
        """The name as ``/api/tags`` and ``/api/ps`` show it: no default but the tag."""
        name = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{name}"
        return name

    def __str__(self) -> str:
        return self.short


def meant_by(name: str, there: Sequence[str]) -> str:
    """Return the one of the names *there* that *name* may have been meant for; empty for none."""
    bare = without_provider(name)
    keys = {}
    for candidate in there:
        with suppress(ValueError):
            keys[ModelName.parse(candidate).key] = candidate
    with suppress(ValueError):
        if bare != name and (key := ModelName.parse(bare).key) in keys:
            return keys[key]
    return closest(bare, there)


def closest(text: str, known: Sequence[str]) -> str:
    """Return the one of *known* that *text* is a slip of; empty for none."""
    # Imported here: a slip is rare, and this costs each run.
    from difflib import get_close_matches

    return next(iter(get_close_matches(text, known, n=1, cutoff=0.75)), "")


def is_cloud(text: str) -> bool:
    """Whether a name asks for Ollama's cloud: ``:cloud``, or a tag that ends in ``-cloud``."""
    return _source(text.strip())[1] == "cloud"


def _source(name: str) -> tuple[str, str]:
    """Return *name* without the suffix that says where it runs, and where: cloud, local or ""."""
    base, colon, suffix = name.rpartition(":")
    where = suffix.lower()
    if colon and where in ("cloud", "local"):
        return base, where
    if colon and "/" not in suffix and where.endswith("-cloud"):
        return name[: -len("-cloud")], "cloud"
    return name, ""


def _without_source(text: str) -> str:
    """Return *text* with the suffix as the server stores it: ``m:1b:cloud`` is ``m:1b-cloud``."""
    base, where = _source(text.strip())
    if not where:
        return base
    if _source(base)[1]:
        raise ValueError("use one of :cloud, -cloud and :local")
    if where == "local":
        return base
    return f"{base}-cloud" if ":" in base.rpartition("/")[2] else f"{base}:cloud"


def _split_tag(name: str) -> tuple[str, str]:
    # A colon before the last slash belongs to a host's port or to a scheme.
    head, slash, last = name.rpartition("/")
    model, colon, tag = last.rpartition(":")
    return (f"{head}{slash}{model}", tag) if colon else (name, DEFAULT_TAG)


def _check(part: str, value: str) -> None:
    pattern, longest = _PARTS[part]
    if not value:
        raise ValueError(f"the {part} is empty")
    if len(value) > longest:
        raise ValueError(f"the {part} is longer than {longest} characters")
    valid = pattern.match(value)
    if valid is None or valid.end() < len(value):
        wrong = value[valid.end() if valid else 0]
        where = "in" if valid else "at the start of"
        raise ValueError(f"{wrong!r} is not allowed {where} the {part}")
