"""What a suite has put in the place of httpx, through which the server is asked."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import CannotAsk, WarmupError
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.ollama.host import Host

# What the client uses of it, and what suites and mocking libraries replace.
_PARTS = (
    "Client",
    "HTTPTransport",
    "Timeout",
    "Limits",
    "RequestError",
    "Client.send",
    "Client.build_request",
    "HTTPTransport.handle_request",
)


def replaced() -> str:
    """Return which part of httpx is not its own now, and what is in its place; empty if none is.

    What wraps a part and keeps its name counts as its own: so do tracing libraries.
    """
    module = sys.modules.get("httpx", sys)
    if module is sys:
        return ""
    if type(module) is not ModuleType or not _get(module, "__file__"):
        return f"httpx ({_described(module)})"
    for name in _PARTS:
        part: object = module
        for attribute in name.split("."):
            part = _get(part, attribute)
        if not _home(part).startswith("httpx"):
            return f"httpx.{name} ({_described(part)})"
    return ""


def is_for_us(exc: BaseException) -> bool:
    """Whether *exc*, which came of a question to the server, is to be reported, and not to go on.

    A stand-in may call ``pytest.fail()``, whose exception is like Ctrl-C's for Python. Without one
    it is that of a time-out, or of somebody who wants the test or the run to end.
    """
    if isinstance(exc, KeyboardInterrupt | SystemExit | GeneratorExit):
        return False
    # pytest.exit() alone ends the run by an Exception.
    return type(exc).__name__ != "Exit" if isinstance(exc, Exception) else bool(replaced())


@contextmanager
def suppressing() -> Iterator[None]:
    """Suppress what is for us, where there is nobody to report it to."""
    try:
        yield
    except BaseException as exc:
        if not is_for_us(exc):
            raise
        LOG.debug("a question to the server failed", exc_info=True)


def as_error(exc: BaseException, host: Host) -> WarmupError:
    """Return what to say of *exc*, which is for us: it came of a question to the server *host*."""
    if isinstance(exc, WarmupError):
        return exc
    cause = clean(f"{type(exc).__name__}: {exc}", 200).removesuffix(".")
    return CannotAsk(host.url, host.source, cause, replaced())


def _get(thing: object, name: str) -> object:
    try:
        return getattr(thing, name, None)
    # A stand-in may raise, whatever it is asked.
    except Exception:
        LOG.debug("what replaces httpx has no %s", name, exc_info=True)
    return None


def _home(thing: object) -> str:
    return str(_get(thing, "__module__") or type(thing).__module__)


def _described(thing: object) -> str:
    name = _get(thing, "__qualname__")
    if not isinstance(name, str):
        return clean(f"now {type(thing).__name__}", 100)
    return clean(f"now {_home(thing)}.{name}", 100)
