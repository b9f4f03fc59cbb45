"""What the arguments of a mark say; the function with its signature reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.config.model_specs import KEYS, OF_REQUESTS, ModelSpec, parse_specs
from pytest_ollama_warmup.errors import CAPABILITIES, BadMark, BadSpec, words_of
from pytest_ollama_warmup.ollama.names import closest
from pytest_ollama_warmup.session.mark_names import MARK, NAME

if TYPE_CHECKING:
    import pytest

ON_UNAVAILABLE = ("auto", "exit", "fail", "skip")


class Arguments(NamedTuple):
    """What a mark says, read."""

    specs: tuple[ModelSpec, ...]
    capabilities: tuple[str, ...]
    on_unavailable: str


def read_mark(mark: pytest.Mark, test: str) -> Arguments:
    """Read what *mark* says of *test*.

    Raises:
        BadMark: it does not fit its signature.
    """
    try:
        return _requires_model(*mark.args, **mark.kwargs)
    except (TypeError, BadSpec) as exc:
        why = words_of(exc)
    raise BadMark(why, test, MARK)


def _requires_model(
    *specs: str,
    capabilities: str | Iterable[str] = (),
    options: Mapping[str, object] | None = None,
    on_unavailable: str | None = None,
    **others: object,
) -> Arguments:
    source = f"@pytest.mark.{NAME}"
    for name, value in others.items():
        raise TypeError(_meant_argument(name, value))
    for text in specs:
        if isinstance(text, list | tuple | set):
            each = ", ".join(f'"{spec}"' for spec in text)
            raise TypeError(f"each model is an argument of its own: {NAME}({each})")
        if not isinstance(text, str):
            raise TypeError(f"model names must be strings, got {text!r}")
        if not text.strip():
            raise TypeError("a model name is empty")
    read = parse_specs(specs, source)
    wanted = [capabilities] if isinstance(capabilities, str) else capabilities
    if not isinstance(wanted, Iterable) or not all(
        isinstance(capability, str) for capability in wanted
    ):
        raise TypeError(f'capabilities must be strings such as ["tools"], got {capabilities!r}')
    for capability in wanted:
        if capability not in CAPABILITIES and (meant := closest(capability, CAPABILITIES)):
            raise TypeError(f"no model has the capability {capability!r}; did you mean {meant!r}?")
    if options is not None:
        if not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict of runner options, got {options!r}")
        if not read:
            raise TypeError("options are for the models that the mark names, and it names none")
        read = tuple(spec.given(options, source) for spec in read)
    if on_unavailable is not None and on_unavailable not in ON_UNAVAILABLE:
        valid = ", ".join(ON_UNAVAILABLE)
        raise TypeError(f"{on_unavailable!r} is not a valid on_unavailable; valid values: {valid}")
    able = tuple(wanted)
    return Arguments(
        tuple(spec._replace(capabilities=united(able)) for spec in read),
        able,
        on_unavailable or "",
    )


def _meant_argument(name: str, value: object) -> str:
    """Say what to write instead of ``NAME=VALUE``, which the mark does not take."""
    if name in ("model", "models", "spec", "specs", "name", "names"):
        values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
        each = ", ".join(f'"{spec}"' for spec in values)
        return f"models are given without {name}=: {NAME}({each})"
    if name in KEYS:
        written = f'"{value}"' if isinstance(value, str) else repr(value)
        return f'{name} goes into options={{"{name}": {written}}}'
    if name in OF_REQUESTS:
        return f"{name} does not decide how a model is loaded: send it with each request"
    arguments = ("capabilities", "options", "on_unavailable")
    meant = closest(name, arguments)
    return f"{NAME} has no argument {name}" + (f"; did you mean {meant}?" if meant else "")


def united(*lists: Iterable[str]) -> tuple[str, ...]:
    """Return what is in any of *lists*, each once, in their order."""
    return tuple(dict.fromkeys(text for each in lists for text in each))
