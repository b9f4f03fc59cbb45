"""Where the server is: Ollama's own rules for OLLAMA_HOST."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.errors import BadHost
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Python raises UnicodeError, no OSError, for a name with an empty or a long label. Digits alone are
# an address with a mistake in it, or a port.
_HOST_NAME = re.compile(rf"(?![0-9.]+\Z){_LABEL}(?:\.{_LABEL})*\.?")
_API_PATH = re.compile(
    r"/v1(/(chat/completions|completions|embeddings|models))?/*$"
    r"|/api(/(generate|chat|embed|embeddings|tags|ps|show|pull|version))?/*$"
)
_PATH = re.compile(r"[A-Za-z0-9._~!$&()*+;=:%/-]*")


class Host(NamedTuple):
    """The address of a server, ready to connect to, and who gave it."""

    url: str
    source: str
    note: str = ""
    dropped: str = ""
    """What stood at the end of the address, and is a path of the API: ``/v1``."""

    @property
    def name(self) -> str:
        """The bare host name or address, without brackets and port."""
        netloc = self.url.split("://", 1)[1].split("/", 1)[0]
        return netloc.rsplit(":", 1)[0].strip("[]")

    @property
    def as_variable(self) -> str:
        """Value for ``OLLAMA_HOST``: ``host:port``, as Ollama documents it, or a URL if needed."""
        scheme, _, rest = self.url.partition("://")
        return self.url if scheme != "http" or "/" in rest else rest

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine."""
        try:
            return ipaddress.ip_address(self.name).is_loopback
        except ValueError:
            return self.name == "localhost"


def parse_host(text: str, source: str) -> Host:
    """Read an address as Ollama reads ``OLLAMA_HOST`` (v0.33, ``envconfig.Host``).

    ``0.0.0.0``, ``::`` and an empty host are addresses to listen on; they become the loopback
    address. Unlike the server, which falls back to its default port with a warning, an impossible
    port is refused: a client that talks to another port than the user typed helps nobody.

    Raises:
        BadHost: user information, another scheme than http(s), an impossible host or port.
    """
    value = text.strip().strip("\"'").strip()
    scheme, parted, rest = value.partition("://")
    if not parted:
        scheme, rest = ("https", "ollama.com:443") if value == "ollama.com" else ("http", value)
    scheme = scheme.lower()
    shown = clean(value)
    if "@" in rest:
        # The text after the @ is all that may be shown: before it stands a password, which may
        # hold slashes and colons.
        shown = f"***@{clean(rest.rpartition('@')[2])}"
        if parted and scheme in _DEFAULT_PORTS:
            shown = f"{scheme}://{shown}"
        raise BadHost(shown, source, "user and password in it; Ollama takes OLLAMA_API_KEY instead")
    if scheme not in _DEFAULT_PORTS:
        raise BadHost(shown, source, f"scheme {clean(scheme)}")
    netloc, _, path = rest.partition("/")
    if "," in netloc:
        raise BadHost(shown, source, "more than one host; pytest's --ollama-host takes several")
    default_port = _DEFAULT_PORTS[scheme] if parted else 11434
    name, port = _split_port(netloc, shown, source)
    if not _PATH.fullmatch(path):
        raise BadHost(shown, source, "a query, or a character that no path has, after the host")
    bracketed = f"[{name}]" if ":" in name else name
    path = f"/{path.rstrip('/')}" if path.strip("/") else ""
    # The right server with a wrong path: what clients of other APIs are given.
    dropped = found[0] if (found := _API_PATH.search(path)) else ""
    path = path.removesuffix(dropped)
    note = ""
    if parted and scheme == "http" and port is None:
        note = "http:// without a port means port 80"
    return Host(f"{scheme}://{bracketed}:{port or default_port}{path}", source, note, dropped)


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """Read one address, or several that are parted by commas, each as ``parse_host`` does.

    Raises:
        BadHost: names the one that is bad.
    """
    parts = text.split(",")
    # Before the text is shown: one that holds a password is refused, and shown without it.
    hosts = tuple(parse_host(part, source) for part in parts)
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise BadHost(clean(text), source, "a comma with no host before or after it")
    return hosts


def distinct(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Return *hosts* without those that are another name of one before."""
    found: dict[str, Host] = {}
    for host in hosts:
        found.setdefault(same_url(host), host)
    return tuple(found.values())


def again(hosts: Collection[Host]) -> list[Host]:
    """Return those of *hosts* that stand there more than once, as they are called first."""
    times = Counter(same_url(host) for host in hosts)
    return [host for host in distinct(hosts) if times[same_url(host)] > 1]


def same_url(host: Host) -> str:
    """Return the URL of *host* as it compares: one says localhost, and another 127.0.0.1."""
    if host.name != "localhost":
        return host.url
    return re.sub(r"(?<=://)localhost(?=:\d+)", "127.0.0.1", host.url, count=1)


def names(text: str | None, host: Host) -> bool:
    """Return whether *text*, the value of ``OLLAMA_HOST``, means *host*; None is the default."""
    try:
        return same_url(parse_host(text or "", "OLLAMA_HOST")) == same_url(host)
    except BadHost:
        return False


def _split_port(netloc: str, shown: str, source: str) -> tuple[str, int | None]:
    port: str | None
    name, port = netloc, None
    if netloc.count(":") < 2 or netloc.startswith("["):
        head, colon, tail = netloc.rpartition(":")
        if colon and not tail.endswith("]"):
            name, port = head, tail
    name = name.removeprefix("[").removesuffix("]").lower()
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise BadHost(shown, source, f"port {clean(port)!r}, not a number from 1 to 65535")
    name = _UNSPECIFIED.get(name, name)
    if not (_is_address(name) or _HOST_NAME.fullmatch(name)):
        raise BadHost(shown, source, f"host {clean(name)!r}")
    return name, None if port is None else int(port)


def _is_address(name: str) -> bool:
    try:
        zone = getattr(ipaddress.ip_address(name), "scope_id", None)
    except ValueError:
        return False
    # ipaddress takes anything for the zone of fe80::1%eth0.
    return zone is None or _HOST_NAME.fullmatch(zone) is not None
