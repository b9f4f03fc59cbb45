"""The sections of docs/fix.md that messages name."""

from __future__ import annotations

import re


def unnamed(text: str) -> str:
    """Return a message without the section that its first line must name."""
    first, *others = text.split("\n")
    words, number = re.subn(r" \[[a-z-]+\]$", "", first)
    assert number == 1, f"names no section of docs/fix.md: {first}"
    return "\n".join([words, *others])
