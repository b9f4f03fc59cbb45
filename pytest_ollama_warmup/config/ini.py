"""What pytest's configuration file holds for an option."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.errors import BadSetting

if TYPE_CHECKING:
    import pytest

    from pytest_ollama_warmup.config.options import Option


def from_ini(config: pytest.Config, options: object, option: Option) -> tuple[Any, str]:
    """Return what pytest's configuration holds for *option*, None for nothing, and its name there.

    *options* is the namespace that may override the file (``-o``).

    Raises:
        BadSetting: a value of another type.
    """
    import pytest

    overrides = getattr(options, "override_ini", None) or ()
    if any(str(override).partition("=")[0].strip() == option.ini for override in overrides):
        source = f"-o {option.ini}"
    else:
        path = config.inipath
        source = f"{option.ini} in {path.name if path else 'the configuration file'}"
    try:
        return config.getini(option.ini), source
    # pytest 8.4 lets ValueError through, 9.2 makes it a UsageError without key or file.
    except (pytest.UsageError, ValueError, TypeError) as exc:
        value = "***" if option.secret else _given(exc)
        raise BadSetting(value, source, needed_type(option)) from None


def needed_type(option: Option) -> str:
    """Say what a configuration file has to hold for *option*."""
    return NEEDED_TYPES.get(option.name, NEEDED_TYPES[option.ini_type])


NEEDED_TYPES = {
    "header": 'Expected a list of strings such as ["X-API-Key: $GATEWAY_KEY"].',
    "report": 'Expected a list of strings such as ["ollama.html"].',
    "export": 'Expected a list of strings such as ["OLLAMA_BASE_URL"].',
    "args": 'Expected a list of strings such as ["llama3.2:1b"].',
    "linelist": 'Expected a list of strings such as ["chat=llama3.2:1b"].',
    "bool": "Expected true or false.",
    "string": 'Expected a string; in TOML, quote it: "10m".',
}


def _given(exc: Exception) -> str:
    # The value as pytest quotes it at the end of its message, without the file's path before it.
    text = str(exc)
    quoted = re.search(r"'([^']*)'$", text)
    return quoted[1] if quoted else text.rpartition(": ")[2]
