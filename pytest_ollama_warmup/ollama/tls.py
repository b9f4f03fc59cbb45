"""Whose certificates are trusted: those that the usual variables name, for every host."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# httpx knows the first two, and forgets them with the proxies where it is to trust no variable.
VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def named_by(environ: Mapping[str, str] = os.environ) -> str:
    """Return the variable that names certificates, the first of them that is set; empty if none."""
    return next((name for name in VARIABLES if environ.get(name)), "")


def trust(url: str, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext | bool:
    """Return what httpx takes for ``verify`` with the server *url*.

    Raises:
        OSError: what the variable names cannot be read.
    """
    if not url.startswith("https:"):
        # Without TLS there is nothing to verify, and the context costs 40 ms.
        return False
    variable = named_by(environ)
    if not variable:
        return True
    path = Path(environ[variable])
    if path.is_dir():
        return ssl.create_default_context(capath=str(path))
    return ssl.create_default_context(cafile=str(path))
