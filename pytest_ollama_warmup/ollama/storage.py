"""The server's storage, as far as it can be seen from here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ollama_warmup.ollama.host import Host


def free_bytes(host: Host, digest: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many bytes are free where the server downloads the part *digest* to.

    None where that cannot be known: on another machine, in a container, in a directory that this
    user may not read. It is known when the part itself is seen in one of the usual places (v0.33:
    ``blobs/sha256-…-partial*`` from the first line of its download).
    """
    kind, _, hex_digits = digest.partition(":")
    if not (host.loopback and kind == "sha256" and hex_digits.isalnum()):
        return None
    home = environ.get("HOME", "")
    for folder in (
        environ.get("OLLAMA_MODELS", ""),
        home and f"{home}/.ollama/models",
        # The service of the Linux installer.
        "/usr/share/ollama/.ollama/models",
    ):
        try:
            if folder and any(Path(folder, "blobs").glob(f"sha256-{hex_digits}-partial*")):
                return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
