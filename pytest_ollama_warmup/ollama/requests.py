"""What is sent to a server, whichever library sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.errors import BadSetting, MissingVariable
from pytest_ollama_warmup.text import Secret, clean, explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_ollama_warmup.ollama.host import Host

LoadKind = Literal["generate", "embed"]
KeyState = Literal["none", "unusable", "sent", "withheld", "login", "header"]
# A header of the user's own: its name and its value.
Header = tuple[str, Secret]

# A gateway that gave up on a request after so long had waited for the server: it is its time limit,
# to all appearance.
GATEWAY_WAITED_S = 1.0
_HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
# Requests set these by themselves, and would be cut or never end with others.
_FRAMING = ("content-length", "transfer-encoding")


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


def read_headers(
    texts: Iterable[str], source: str, environ: Mapping[str, str]
) -> tuple[Header, ...]:
    """Read headers that are given as ``NAME: VALUE``; ``$NAME`` in a value is of *environ*.

    Raises:
        BadSetting: one cannot be read, or not be sent. Its value, a secret, is not shown.
        MissingVariable: a variable is not set, or empty.
    """
    return tuple(_read_header(text, source, environ) for text in texts)


def _read_header(text: str, source: str, environ: Mapping[str, str]) -> Header:
    # Imported here: few runs have such headers.
    import re
    from string import Template

    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not re.fullmatch(_HEADER_NAME, name):
        # All of it may be the secret.
        raise BadSetting("***", source, "Expected NAME: VALUE, such as 'X-API-Key: $GATEWAY_KEY'.")
    shown = f"{name}: ***"
    if name.lower() in _FRAMING:
        raise BadSetting(shown, source, "Each request sets this header itself.")
    template = Template(value)
    if not template.is_valid():
        raise BadSetting(shown, source, "A $ that names no variable is written $$.")
    for variable in template.get_identifiers():
        if not environ.get(variable, "").strip():
            raise MissingVariable(name, source, variable)
    value = template.substitute(environ).strip()
    if not (value and value.isascii() and value.isprintable()):
        raise BadSetting(shown, source, "Expected plain ASCII text on one line.")
    return name, Secret(value)


def key_state(host: Host, api_key: str, extra: Sequence[Header] = ()) -> KeyState:
    """Say what *host* can know the user by: *api_key*, or why it is not sent, or something else.

    Of what could be the header ``Authorization`` only one is sent: a header of the user's own, else
    the login in the address, else the key.
    """
    if any(name.lower() == "authorization" for name, _ in extra):
        return "header"
    if host.login:
        return "login"
    state = _state_of_key(host, api_key)
    return "header" if state == "none" and extra else state


def _state_of_key(host: Host, api_key: str) -> KeyState:
    if not api_key:
        return "none"
    if not (api_key.isascii() and api_key.isprintable()):
        # No header can hold it, and the error that says so would show it.
        return "unusable"
    # A key sent to a plain-http address elsewhere would cross the network in the clear. Nobody has
    # given it for this server, as a login in its address is or a header.
    return "withheld" if _is_readable_on_the_way(host) else "sent"


def _is_readable_on_the_way(host: Host) -> bool:
    return not (host.url.startswith("https:") or host.loopback)


def headers(host: Host, api_key: str, extra: Sequence[Header] = ()) -> dict[str, str]:
    """Return the headers of each request to *host*."""
    # A MB of gzip can be a GB of text.
    defaults = {"User-Agent": "pytest-ollama-warmup", "Accept-Encoding": "identity"}
    if not host.login and _state_of_key(host, api_key) == "sent":
        defaults["Authorization"] = Secret(f"Bearer {api_key}")
    return _with(defaults, own_headers(host, extra))


def own_headers(host: Host, extra: Sequence[Header] = ()) -> dict[str, str]:
    """Return those of them that the user has given for *host*: in its address, and as headers."""
    credentials: dict[str, str] = {}
    if host.login:
        credentials["Authorization"] = Secret(f"Basic {_basic(host)}")
    return _with(credentials, dict(extra))


def _basic(host: Host) -> str:
    from base64 import b64encode

    return b64encode(host.login.encode()).decode()


def _with(base: dict[str, str], more: Mapping[str, str]) -> dict[str, str]:
    replaced = {name.lower() for name in more}
    return {name: text for name, text in base.items() if name.lower() not in replaced} | dict(more)


def secrets_of(host: Host, api_key: str, extra: Sequence[Header] = ()) -> list[str]:
    """Return what must not be shown, should a server echo it; the longest first."""
    secrets = {api_key, host.login, host.login.partition(":")[2]}
    if host.login:
        secrets.add(_basic(host))
    # One that is as short as "eu" is no secret, and would be found in every other word.
    secrets |= {value for _, value in extra if len(value) > 3}
    return sorted(secrets - {""}, key=len, reverse=True)


def readable_on_the_way(hosts: Iterable[Host], extra: Sequence[Header]) -> str:
    """Say what goes to which of *hosts* unencrypted; empty if nothing that is secret does."""
    servers = [host for host in hosts if _is_readable_on_the_way(host) and (host.login or extra)]
    if not servers:
        return ""
    what = [name for name, _ in extra]
    if any(host.login for host in servers):
        what.insert(0, "the password in the address")
    return explained(
        f"{clean(', '.join(what))}: sent to {', '.join(host.url for host in servers)} unencrypted, "
        "so that others in the network can read it. Use an https:// address if the server has one.",
        "sent-unencrypted",
    )


class Headers:
    """Adds headers to a request, for httpx's ``auth``: in no frame of it can they be seen."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        """Add them."""
        request.headers.update(self._headers)
        return request
