"""Which proxy stands between us and a server, by the usual variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.host import Host


def proxy_for(host: Host) -> str:
    """Return the variable that names the proxy for *host*; empty where there is none.

    Loopback addresses have none: httpx would send even those to HTTP_PROXY.
    """
    if host.loopback:
        return ""
    # Imported here: most servers are on this machine, and need not pay for it.
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(host.url)
    if proxy_bypass(url.netloc):
        return ""
    names = [name for base in (f"{url.scheme}_proxy", "all_proxy") for name in (base, base.upper())]
    if variable := next((name for name in names if os.environ.get(name)), ""):
        return variable
    return "the system's settings" if {url.scheme, "all"} & getproxies().keys() else ""
