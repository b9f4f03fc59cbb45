"""Where the server is: Ollama's own rules for OLLAMA_HOST."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from pytest_ollama_warmup.errors import BadHost
from pytest_ollama_warmup.text import Address, Secret, clean

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
    """The address of a server, ready to connect to, and who gave it.

    The *url* has no user and password, so that it can be shown and recorded; *login* has them.
    """

    url: str
    source: str
    note: str = ""
    dropped: str = ""
    """What stood at the end of the address, and is a path of the API: ``/v1``."""
    login: Secret = Secret()
    """``USER:PASSWORD``, or empty."""

    @property
    def address(self) -> str:
        """The URL for clients: with user and password, where they were given."""
        if not self.login:
            return self.url
        parts = (quote(part, safe="") for part in self.login.split(":", 1))
        return Address(self.url.replace("://", f"://{':'.join(parts)}@", 1))

    @property
    def name(self) -> str:
        """The bare host name or address, without brackets and port."""
        netloc = self.url.split("://", 1)[1].split("/", 1)[0]
        return netloc.rsplit(":", 1)[0].strip("[]")

    @property
    def as_variable(self) -> str:
        """Value for ``OLLAMA_HOST``: ``host:port``, as Ollama documents it, or a URL if needed."""
        scheme, _, rest = self.url.partition("://")
        # A plain text: pytest-xdist sends it to workers, which nothing else can be.
        return str(self.address) if scheme != "http" or "/" in rest or self.login else rest

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
    port is refused: a client that talks to another port than the user typed helps nobody. And a
    user with a password, which Ollama does not read, is taken as gateways before it need them.

    Raises:
        BadHost: another scheme than http(s), an impossible login, host or port.
    """
    value = text.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = ("https", "ollama.com:443") if value == "ollama.com" else ("http", value)
    scheme = scheme.lower()
    shown = shown_without_login(value)
    userinfo, _, rest = rest.rpartition("@")
    if scheme not in _DEFAULT_PORTS:
        # What is taken for the scheme may be a part of the password.
        raise BadHost(
            shown, source, "no http:// or https://" if userinfo else f"scheme {clean(scheme)}"
        )
    login = _read_login(userinfo, shown, source)
    netloc, _, path = rest.partition("/")
    if "," in netloc:
        raise BadHost(shown, source, "more than one host; pytest's --ollama-host takes several")
    default_port = _DEFAULT_PORTS[scheme] if separator else 11434
    name, port = _split_port(netloc, shown, source)
    if not _PATH.fullmatch(path):
        raise BadHost(shown, source, "a query, or a character that no path has, after the host")
    bracketed = f"[{name}]" if ":" in name else name
    path = f"/{path.rstrip('/')}" if path.strip("/") else ""
    # The right server with a wrong path: what clients of other APIs are given.
    dropped = match[0] if (match := _API_PATH.search(path)) else ""
    path = path.removesuffix(dropped)
    note = ""
    if separator and scheme == "http" and port is None:
        note = "http:// without a port means port 80; Ollama listens on 11434"
    url = f"{scheme}://{bracketed}:{port or default_port}{path}"
    return Host(url, source, note, dropped, login)


def shown_without_login(value: str) -> str:
    """Return an address as it may be shown, also one that cannot be read.

    What stands before the last @ is a password, which may hold slashes and colons.
    """
    before, at, after = value.rpartition("@")
    if not at:
        return clean(value)
    scheme = before.partition("://")[0].lower()
    return f"{f'{scheme}://' if scheme in _DEFAULT_PORTS else ''}***@{clean(after)}"


def _read_login(userinfo: str, shown: str, source: str) -> Secret:
    """Return ``USER:PASSWORD`` as it is sent; *userinfo* may have signs as ``%40``.

    Raises:
        BadHost: no header could hold it, or it may be a path with an @ in it.
    """
    if any(sign in userinfo for sign in "/?#"):
        raise BadHost(shown, source, "a / ? or # before the @; in a password write %2F, %3F or %23")
    user, colon, password = (unquote(part) for part in userinfo.partition(":"))
    if ":" in user or not (user + password).isprintable():
        raise BadHost(shown, source, "a user with a colon, or a sign in it that nobody can type")
    return Secret(f"{user}:{password}" if user or colon else "")


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """Read one address, or several separated by commas, each as ``parse_host`` does.

    Raises:
        BadHost: names the one that is bad.
    """
    parts, hosts = text.split(","), list[Host]()
    for number, part in enumerate(parts, 1):
        try:
            hosts.append(parse_host(part, source))
        except BadHost:
            # It may be the first half of a password.
            if "@" in part or not any("@" in piece for piece in parts[number:]):
                raise
            why = "a comma in a password is written %2C, and one between hosts needs a host before"
            hidden = BadHost(shown_without_login(text), source, why)
        else:
            continue
        # Not in the except: the other error would be kept as its context.
        raise hidden
    if len(parts) > 1 and not all(part.strip() for part in parts):
        shown = ",".join(map(shown_without_login, parts))
        raise BadHost(shown, source, "a comma with no host before or after it")
    return tuple(hosts)


def distinct(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Return *hosts* without those that are another name of one before."""
    servers: dict[str, Host] = {}
    for host in hosts:
        servers.setdefault(same_url(host), host)
    return tuple(servers.values())


def again(hosts: Collection[Host]) -> list[Host]:
    """Return those of *hosts* that stand there more than once, as they are called first."""
    times = Counter(same_url(host) for host in hosts)
    return [host for host in distinct(hosts) if times[same_url(host)] > 1]


def same_url(host: Host) -> str:
    """Return the URL of *host* as it compares: one says localhost, and another 127.0.0.1."""
    if host.name != "localhost":
        return host.url
    return re.sub(r"(?<=://)localhost(?=:\d+)", "127.0.0.1", host.url, count=1)


def names(text: str | None, host: Host, *, with_login: bool = False) -> bool:
    """Return whether *text*, the value of ``OLLAMA_HOST``, means *host*; None is the default.

    *with_login* is whether it also has to hold the user and password that *host* has.
    """
    try:
        address = parse_host(text or "", "OLLAMA_HOST")
    except BadHost:
        return False
    if with_login and host.login and address.login != host.login:
        return False
    return same_url(address) == same_url(host)


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
