"""A look at a server's memory by the standard library alone.

Each worker of a suite takes some, and httpx takes 40 ms to import, of each worker's time.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_ollama_warmup.ollama.limits import ANSWER_BYTES, Limit
from pytest_ollama_warmup.ollama.logs import log_request
from pytest_ollama_warmup.ollama.proxy import proxy_for
from pytest_ollama_warmup.ollama.requests import headers
from pytest_ollama_warmup.ollama.responses import loaded_in, models_in, parse
from pytest_ollama_warmup.ollama.sockets import bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.requests import Header
    from pytest_ollama_warmup.ollama.responses import LoadedModel

LIMIT_S = 5.0


def can_look(host: Host) -> bool:
    """Whether *host* can be asked without certificates and without a proxy."""
    return host.url.startswith("http:") and not proxy_for(host)


def loaded(
    host: Host, api_key: str, extra: Sequence[Header], client: Callable[[], Client]
) -> list[LoadedModel]:
    """Return the models in memory, asked for by *client* only where this module cannot ask."""
    return loaded_models(host, api_key, extra) if can_look(host) else client().loaded_models()


def loaded_models(host: Host, api_key: str, extra: Sequence[Header] = ()) -> list[LoadedModel]:
    """Return the models in memory, like ``Client.loaded_models``.

    Raises:
        OSError: the server does not answer, or its answer has no end.
        ValueError, http.client.HTTPException: it answers something else.
    """
    url = urlsplit(host.url)
    log_end = log_request("GET", f"{host.url}/api/ps")
    connection = http.client.HTTPConnection(url.netloc, timeout=LIMIT_S)
    try:
        connection.connect()
        connection.sock = bounded(connection.sock, Limit(LIMIT_S))
        sent = headers(host, api_key, extra)
        connection.request("GET", f"{url.path}/api/ps", headers=sent)
        response = connection.getresponse()
        log_end(f"HTTP {response.status}")
        data = parse(response.read(ANSWER_BYTES))
        if response.status != 200 or not isinstance(data, dict):
            raise ValueError(f"HTTP {response.status}")
        return loaded_in(models_in(data), response.getheader("date"))
    finally:
        connection.close()
