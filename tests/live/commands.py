"""Run the commands that fetch and build the parts of the live tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHECK_LIMIT_S = 60
DOWNLOAD_LIMIT_S = 15 * 60
# On two busy cores llama-server took 25 minutes instead of 5.
BUILD_LIMIT_S = 60 * 60


class Missing(Exception):
    """A part cannot be provided; the text is one line that says what is missing and what to do."""


def pip(command: str, *args: str) -> None:
    """Run pip; the last of *args* is the requirement, which an error names."""
    if importlib.util.find_spec("pip") is None:
        raise Missing("no pip in this Python: python -m ensurepip, then try again")
    run(
        [sys.executable, "-m", "pip", command, "--quiet", "--retries=1", *args],
        f"pip could not {command} {args[-1]}",
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        limit_s=DOWNLOAD_LIMIT_S,
    )


def run(
    command: list[str],
    failed: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_s: float = CHECK_LIMIT_S,
) -> str:
    """Run *command* and return what it printed; raise :class:`Missing` beginning with *failed*."""
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as exc:
        raise Missing(f"{failed}: {exc.strerror}") from None
    with process:
        try:
            output = process.communicate(timeout=limit_s)[0]
        except BaseException as exc:
            # The compilers that go and ninja start would outlive it, also after Ctrl-C.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise Missing(f"{failed}: not done after {limit_s:.0f} s") from None
            raise
    if process.returncode == 0:
        return output
    raise Missing(f"{failed}: {cause(output, process.returncode)}")


def cause(output: str, code: int) -> str:
    """Return in one line why a command failed that printed *output* and ended with *code*."""
    if code == -signal.SIGILL:
        return "this processor lacks an instruction it uses (SIGILL)"
    if code < 0:
        return f"it died of {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return f"exit status {code}"
    # A compiler's error is followed by the messages of the tools that called it.
    errors = [n for n, line in enumerate(lines) if re.search(r"error:|CMake Error", line)]
    told = lines[errors[0] : errors[0] + 2] if errors else lines[-1:]
    return " ".join(told)[:300]
