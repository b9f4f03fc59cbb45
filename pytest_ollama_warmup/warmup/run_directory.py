"""The directory that the processes of one run share: made, and removed in the end."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pytest_ollama_warmup.ollama import clock

_POLL_S = 0.02
_TRIES = 50
_PREFIX = "pytest-ollama-warmup-run-"


def make_run_folder() -> Path:
    """Make the directory of a run, and remove those that runs of this user have left behind.

    Signals end a run without a word. They are not caught: a handler in Python would keep a test
    that hangs in C code from ending.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*.*"):
        with suppress(OSError):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}.{_processes()}-"))


def _is_abandoned(folder: Path) -> bool:
    found = re.fullmatch(r"(\d+)\.(\w+)-.*", folder.name.removeprefix(_PREFIX))
    # On Windows to ask for a process is to end it; and of containers that share the directory each
    # counts processes by itself.
    if found is None or found[2] != _processes() or not is_private(folder) or os.name == "nt":
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _processes() -> str:
    """Return what tells apart the sets of processes that are counted by themselves."""
    try:
        return re.sub(r"\W", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return "all"


def remove(folder: Path) -> None:
    """Remove the directory of a run that is over, and all in it."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        # A thread whose work was cut writes down how that ended.
        clock.sleep(_POLL_S)


def is_private(folder: Path) -> bool:
    """Whether a directory is this user's own, and nobody else may look into it."""
    # Not what a symbolic link leads to.
    info = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(info.st_mode)
    others_may = info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not others_may
