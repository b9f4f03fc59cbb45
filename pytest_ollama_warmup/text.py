"""How figures, and text from outside, are written for people."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# C0 and C1 control characters: an ESC from a server could repaint the user's terminal. Half a
# surrogate pair, which JSON can hold, cannot be written at all.
_ANSI = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])"
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
# To the last @ of the host part: a password may hold one.
_USERINFO = r"(?<=://)[^/\s]+@"
# What client libraries write in front of a model's name: LiteLLM, LangChain and others.
_PROVIDER = r"(?i:ollama|ollama_chat|openai|local)(?:://|/|:)(?=.)"
# A line that ends in "about 4" reads as if that were all.
_BEFORE_UNIT = r"(?<=\d) (?=(?:m?s|min|h|[kMGT]?B)\b)"


class Secret(str):
    """A text that no traceback shows: pytest's ``--showlocals`` writes what ``repr`` says."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Address(str):
    """A URL that ``repr``, and so ``--showlocals``, shows without its user and password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(re.sub(_USERINFO, "***@", str(self)))


def origin(source: str) -> str:
    """Say where a setting is from: ``from OLLAMA_HOST``, or ``the default``."""
    return "the default" if source == "default" else f"from {source}"


def clean(text: object, limit: int = 500) -> str:
    """Return *text* from outside on one line, without control characters, URL passwords or excess.

    *limit* is in characters; longer text ends in an ellipsis.
    """
    plain = re.sub(_CONTROL, " ", re.sub(_ANSI, "", str(text))).strip()
    plain = re.sub(_USERINFO, "***@", plain)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def without_provider(name: str) -> str:
    """Return a model's name without what client libraries write in front of it: ``ollama/``."""
    match = re.match(_PROVIDER, name)
    return name[match.end() :] if match else name


def shorten(name: str, width: int) -> str:
    """Return *name* in at most *width* characters: the middle goes, both ends say what it is."""
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def cut(text: str, width: int) -> str:
    """Return *text* in at most *width* characters, without its end where that is too long."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """Break *text* between words, lines after the first indented. A *width* of 0 is no limit.

    A number stays with its unit.
    """
    if not width or len(text) <= width:
        return [text]
    lines = textwrap.wrap(
        re.sub(_BEFORE_UNIT, "\xa0", text),
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return [line.replace("\xa0", " ") for line in lines]


def explained(text: str, anchor: str) -> str:
    """Name the section of docs/fix.md after a message's first line: ``... [not-pulled]``.

    The other lines say what to do, and stay as they can be copied.
    """
    what, *rest = text.split("\n")
    return "\n".join([f"{what} [{anchor}]", *rest])


def each_of(names: Sequence[str]) -> str:
    """Write ``a``, ``a and b``, or ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def size(count: float) -> str:
    """Write a number of bytes with decimal units, as Ollama does: ``1.3 GB``, ``412 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999.6 MB is 1.0 GB, not 1000 MB.
        if count >= scale * 0.9995:
            value = count / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def part_of_size(part: float, whole: float) -> str:
    """Write how many bytes of *whole* there are, both in its unit: ``0.4/1.3 GB``."""
    total = size(whole)
    number, _, unit = total.partition(" ")
    value = part / {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}[unit]
    return f"{value:.{len(number.partition('.')[2])}f}/{total}"


def seconds(value: float) -> str:
    """Write a duration given in seconds: ``4 ms``, ``0.27 s``, ``24.1 s``, ``3 min 5 s``."""
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    if value < 1:
        return f"{value:.2f}".rstrip("0").rstrip(".") + " s"
    if value < 100:
        return f"{value:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def count(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 test``, ``41 tests``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def at(what: str, host: str) -> str:
    """Say where *what* is; *host* is empty where the run has one server."""
    return f"{what} at {host}" if host else what


def first_of(tests: list[str]) -> str:
    """Name the first of some tests: ``tests/test_chat.py::test_tone and 11 more``."""
    others = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
    return f"{clean(tests[0], 200)}{others}"


def wanted_by(tests: list[str]) -> str:
    """Say who wants a model: ``wanted by tests/test_chat.py::test_tone and 11 more``."""
    return f"wanted by {first_of(tests)}"
