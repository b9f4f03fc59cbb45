"""Servers from which no model can be had."""

from __future__ import annotations

from shutil import which
from typing import Literal

from pytest_ollama_warmup.errors.base import NoAnswer, WarmupError
from pytest_ollama_warmup.text import clean, origin, seconds


class OllamaNotFound(WarmupError):
    """The program that a server is to be started with is in none of the places *looked* at."""

    program: str
    looked: tuple[str, ...]
    _brief = "no {program}"
    cause = "no Ollama"

    def _text(self) -> str:
        return (
            f"no server can be started: {clean(self.program)} is not there. Looked at: "
            f"{', '.join(clean(place) for place in self.looked)}.\nGet Ollama from "
            "https://ollama.com/download (Linux: curl -fsSL https://ollama.com/install.sh | sh; "
            "macOS: brew install ollama; Windows: winget install Ollama.Ollama), say where it is "
            "with --ollama-serve-command 'PATH serve', or use a server that runs with "
            "--ollama-host URL."
        )


class ServerError(WarmupError):
    """No model can be had from the server at *url*; *source* is who gave the address."""

    url: str
    source: str
    names_host = True

    @property
    def _at(self) -> str:
        return f"{self.url} ({origin(self.source)})"


def _start(source: str) -> str:
    """Say how to have a server, in one line of 80 columns."""
    start = "Start it with 'ollama serve'"
    if which("ollama") is None:
        start = "Start or install it (ollama.com/download)"
    return f"{start}, or {source}."


def _no_proxy(url: str) -> str:
    name = url.split("://", 1)[1].split("/", 1)[0].rpartition(":")[0]
    return f"If the server needs no proxy, add {name} to NO_PROXY."


class ServerUnreachable(ServerError):
    """Nothing answered within the time allowed; *words* are in the place of the cause's own."""

    cause: NoAnswer
    waited_s: float
    note: str = ""
    words: str = ""

    @property
    def why(self) -> str:
        """The cause as messages show it."""
        return self.words or self.cause

    @property
    def timed_out(self) -> bool:
        """Whether the server was connected, and gave no answer in time, or no end of one."""
        return self.cause in ("no answer", "no complete answer")

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"no Ollama: {self.why}"

    def _text(self) -> str:
        waited = f" for {seconds(self.waited_s)}" if self.waited_s >= 0.05 else ""
        return f"no Ollama at {self._at}: {self.why}{waited}.\n{self._advice}"

    @property
    def _advice(self) -> str:
        if self.cause == "proxy":
            return _no_proxy(self.url)
        if self.cause == "proxy setting":
            return "Fix it, or name the host in NO_PROXY."
        if self.note and self.cause in ("connection refused", "no connection"):
            return f"{self.note}."
        if self.cause == "host name not found":
            return "Is the name right?"
        if "ollama-serve" in self.source or "ollama_serve" in self.source:
            return "It has ended; its log, named at the end of the run, says why."
        if "ollama_host" in self.source:
            return f"Start it, or fix {self.source}."
        if self.source.startswith("--"):
            return _start(f"fix {self.source}")
        return _start("set --ollama-host")


class NotOllama(ServerError):
    """Something answers at the address, and it is another service: *request* got *seen*."""

    seen: str
    note: str
    request: str = "GET /api/version"
    cause = "not Ollama"
    _brief = "not an Ollama server"

    def _text(self) -> str:
        note = f"\nNote: {self.note}." if self.note else "\nSet --ollama-host."
        return (
            f"{self._at} answers, but is not Ollama "
            f"({self.request}: {self.seen}). Another service?{note}"
        )


class ProxyAnswered(ServerError):
    """A proxy answers in place of the server: *variable* names it."""

    status: int
    variable: str
    cause = "proxy"
    _brief = "a proxy answers: HTTP {status}"

    def _text(self) -> str:
        return (
            f"the proxy of {self.variable} answers in place of {self._at}: "
            f"HTTP {self.status}.\n{_no_proxy(self.url)}"
        )


_ON_KEY = {
    "sent": "The server does not accept the key in OLLAMA_API_KEY.",
    "withheld": "OLLAMA_API_KEY was not sent: it goes to https and loopback only.",
    "unusable": "OLLAMA_API_KEY was not sent: it is not plain ASCII text on one line.",
    "none": "Set OLLAMA_API_KEY if it wants a key, write USER:PASSWORD@ before the host if "
    "it wants a password, or pass --ollama-header if it wants a header.",
    "login": "The server does not accept the user and password in the address.",
    "header": "The server does not accept what --ollama-header sends.",
}


class AccessDenied(ServerError):
    """The server, or what stands before it, refused: 401 or 403."""

    status: int
    words: str
    key: str
    cause = "access refused"
    _brief = "access refused: HTTP {status}"

    def _text(self) -> str:
        words = f' "{self.words}"' if self.words else ""
        advice = _ON_KEY[self.key]
        if self.status == 403 and not self.words:
            advice = (
                "An Ollama bound to loopback answers so to a host name it does not know; "
                "use its address in --ollama-host."
            )
        return f"{self._at} refuses access (HTTP {self.status}{words}).\n{advice}"


class TlsFailed(ServerError):
    """The encrypted connection could not be set up, as *words* say."""

    words: str
    cause = "no TLS"
    _brief = "no secure connection: {words}"

    def _text(self) -> str:
        return (
            f"no secure connection to {self._at}: {self.words}.\n"
            "Use http:// for a server without TLS; for a private certificate authority "
            "set SSL_CERT_FILE."
        )


class Aborted(ServerError):
    """The run has ended, and with it all that was still under way."""

    cause = "interrupted"
    _brief = "interrupted"

    def _text(self) -> str:
        return f"interrupted while working with {self._at}."


class CannotAsk(ServerError):
    """Something stands in the way: *replaced* says which part of httpx is not its own, and why."""

    words: str
    replaced: str
    cause = "cannot ask"

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        part = self.replaced.partition(" (")[0]
        return f"cannot be asked: {f'{part} is replaced' if part else self.words}"

    def _text(self) -> str:
        said = f"the server at {self._at} cannot be asked: "
        if not self.replaced:
            return f"{said}{self.words}.\nDoes the suite, or a plugin, block network access?"
        return (
            f"{said}the suite, or a plugin, has replaced {self.replaced}: {self.words}.\nReplace "
            "it in a fixture, not on import. Without workers --ollama-background helps too: "
            "another process then prepares the models."
        )


_OTHER_SERVER = "use a server that runs with --ollama-host URL."


class ServerStartFailed(ServerError):
    """The server that was started for this run does not come up, as *words* say.

    *log* is the path of its log, *lines* are the last of it, and the errors before those.
    The port may be taken since it was chosen: a new run takes a new one.
    """

    words: str
    log: str
    lines: tuple[str, ...]
    cause: Literal["start failed", "port taken"] = "start failed"
    _brief = "did not start: {words}"

    def _text(self) -> str:
        said = f"the server at {self._at} did not start: {self.words}."
        if self.lines:
            said += f" The end of {self.log}:\n  " + "\n  ".join(self.lines) + "\n"
        elif self.log:
            said += f" It wrote nothing to {self.log}.\n"
        else:
            said += "\n"
        if self.cause == "port taken":
            return f"{said}Run again: each run takes another port. Or {_OTHER_SERVER}"
        return (
            f"{said}Fix that, pass another command with --ollama-serve-command, or {_OTHER_SERVER}"
        )
