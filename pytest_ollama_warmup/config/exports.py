"""Environment variables beside OLLAMA_HOST that hold the server's address for a suite's clients."""

from __future__ import annotations

import re
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.errors import BadSetting
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.host import Host

FIELDS = ("url", "openai_base_url", "scheme", "host", "port")
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


class Export(NamedTuple):
    """A variable, and the template of its value."""

    name: str
    template: str = "{url}"

    def value(self, host: Host) -> str:
        """Return what the variable holds for *host*, with the user and password of its address."""
        scheme, _, rest = host.url.partition("://")
        name, _, port = rest.partition("/")[0].rpartition(":")
        return self.template.format(
            url=host.address,
            openai_base_url=f"{host.address}/v1",
            scheme=scheme,
            # An IPv6 address in brackets, so that {host}:{port} is right.
            host=name,
            port=port,
        )


def parse_export(text: str, source: str) -> Export:
    """Read ``NAME`` or ``NAME=TEMPLATE``.

    Raises:
        BadSetting: no variable can have the name, or the template has an unknown field.
    """
    name, equals, template = (part.strip() for part in text.partition("="))
    if not _NAME.fullmatch(name):
        needed = "Expected NAME or NAME=TEMPLATE, such as OLLAMA_BASE_URL."
        raise BadSetting(text, source, needed)
    if name == "OLLAMA_HOST":
        raise BadSetting(text, source, "The plugin sets OLLAMA_HOST itself. Leave it out.")
    if not equals:
        return Export(name)
    try:
        # Also what str.format would look up in a value, as in {url[0]}, is none of them.
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as exc:
        raise BadSetting(text, source, f"The template cannot be read: {clean(exc, 80)}.") from None
    choices = ", ".join(f"{{{choice}}}" for choice in FIELDS)
    for field, form, conversion in fields:
        if field not in FIELDS or form or conversion:
            raise BadSetting(text, source, f"Valid fields: {choices}. Write other braces twice.")
    return Export(name, template)
