"""The command line, run as a process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests import forked
from tests.forked import hearing_signals


class Run:
    """How a command ended, and what it wrote."""

    def __init__(self, *arguments: str) -> None:
        done = forked.run("pytest_ollama_warmup", *arguments)
        self.ret, self.out, self.err = done

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def start(*arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Start a command that hears Ctrl-C, as one does that a user has typed."""
    with hearing_signals():
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_ollama_warmup", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=start_new_session,
        )
