"""The directory that all runs of one user on this machine share: locks, and what runs use."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pytest_ollama_warmup.ollama.host import Host
from pytest_ollama_warmup.warmup.locks import file_name

# Where Linux keeps what belongs to a user, as long as one of its sessions lasts.
_RUNTIME = "/run/user"
_NAME = "pytest-ollama-warmup-locks"


def shared_lock_path(work: Literal["pull", "load"], url: str, model_key: str) -> Path:
    """Return the lock of a kind of work on one model, for all runs of this user on this machine.

    A second puller that leaves early can crash a v0.33 server. And one that waits for a runner to
    go, since it wants other options, hangs when a request for a keep-alive keeps that runner.
    """
    return user_folder() / f"{work}-{file_name(f'{one_url(url)} {model_key}')}.lock"


def one_url(url: str) -> str:
    """Return *url* as it compares: one run says localhost, and the other 127.0.0.1."""
    if not Host(url, "").loopback:
        return url
    return re.sub(r"(?<=://).*(?=:\d+)", "localhost", url, count=1)


@lru_cache(maxsize=1)
def user_folder() -> Path:
    """Return the directory, the same one in all runs of this user, also as root.

    Not below TMPDIR, which two runs may each have their own of, unless no other place is the
    user's own. By the user's number, not by XDG_RUNTIME_DIR, which is set for one run and not for
    the other.
    """
    for folder in _places():
        try:
            folder.mkdir(mode=0o700, parents=folder.parent.name == ".cache", exist_ok=True)
        except OSError:
            continue
        if is_private(folder) and os.access(folder, os.W_OK):
            return folder
    # All are somebody else's: what lies there cannot be trusted, so lock for this process only.
    folder = Path(tempfile.mkdtemp(prefix="pytest-ollama-warmup-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _places() -> list[Path]:
    user = str(os.getuid()) if hasattr(os, "getuid") else ""
    places = [Path(_RUNTIME, user, _NAME)] if user else []
    with suppress(RuntimeError):
        places.append(Path.home() / ".cache" / _NAME)
    return [*places, Path(tempfile.gettempdir()) / f"{_NAME}-{user}".rstrip("-")]


def is_private(folder: Path) -> bool:
    """Whether a directory is this user's own, and nobody else may look into it."""
    # Not what a symbolic link leads to.
    info = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(info.st_mode)
    others_may = info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not others_may
