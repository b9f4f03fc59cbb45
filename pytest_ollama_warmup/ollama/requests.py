"""What is sent to a server, whichever library sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.text import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ollama_warmup.ollama.host import Host

LoadKind = Literal["generate", "embed"]
KeyState = Literal["none", "unusable", "sent", "withheld"]


def load_request(
    name: str,
    kind: LoadKind,
    *,
    prompt: str = "",
    options: Mapping[str, object],
    keep_alive: float | None = None,
) -> tuple[str, dict[str, object]]:
    """Return path and body of a request that loads a model, and with a *prompt* also has it answer.

    ``num_predict`` is never 0, which means without limit. *keep_alive* is in seconds; without it
    the server keeps that of the model, or its own.
    """
    runner = dict(options)
    body: dict[str, object] = {"model": name}
    if kind == "embed":
        body["input"] = prompt or []
    else:
        body |= {"prompt": prompt, "stream": False}
        if prompt:
            runner |= {"num_predict": 5, "temperature": 0.1}
    if runner:
        body["options"] = runner
    if keep_alive is not None:
        # An integer where it is one: 600.0 would do, but reads badly in a server's log.
        body["keep_alive"] = int(keep_alive) if keep_alive == int(keep_alive) else keep_alive
    return f"/api/{kind}", body


def key_state(host: Host, api_key: str) -> KeyState:
    """Say whether *api_key* is sent to *host*, or why not."""
    if not api_key:
        return "none"
    if not (api_key.isascii() and api_key.isprintable()):
        # No header can hold it, and the error that says so would show it.
        return "unusable"
    # A key sent to a plain-http address elsewhere would cross the network in the clear.
    return "sent" if host.url.startswith("https:") or host.loopback else "withheld"


def headers(host: Host, api_key: str) -> dict[str, str]:
    """Return the headers of each request to *host*."""
    # A MB of gzip can be a GB of text.
    found = {"User-Agent": "pytest-ollama-warmup", "Accept-Encoding": "identity"}
    if key_state(host, api_key) == "sent":
        found["Authorization"] = Secret(f"Bearer {api_key}")
    return found
