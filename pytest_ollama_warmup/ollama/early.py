"""A load that is asked for while pytest still starts, and that the client meets later.

The standard library only: httpx takes 40 ms to import before it can send anything.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.limits import ANSWER_BYTES, Limit
from pytest_ollama_warmup.ollama.logs import LOG, log_request
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.sockets import BoundedSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ollama_warmup.ollama.host import Host

# As for the client: to connect, and until an answer that needs no load.
_ANSWER_S = 5.0
_PAUSE_S = 0.02
_END_S = 1.0


class Asked(NamedTuple):
    """When a load was asked for, *start* in seconds since the epoch, *begin* and *end* monotonic.

    *end* is None as long as the server has not answered.
    """

    start: float
    begin: float
    end: float | None = None


class EarlyLoad:
    """One look at the server's memory and, unless *model* is in it, one request that loads it.

    Both leave from a daemon thread. Nobody waits for the answers, nothing is tried again, and
    whatever goes wrong is left to the client, which asks later and can say so. The look comes
    first, because a load with other options than the model runs with would reload it.

    *request* is the path and the body of the load, which may take *limit_s* seconds. A server that
    is only being started has *starts_s* seconds until it answers the look.
    """

    def __init__(
        self,
        host: Host,
        model: str,
        request: tuple[str, Mapping[str, object]],
        headers: Mapping[str, str],
        *,
        limit_s: float,
        starts_s: float = 0.0,
    ) -> None:
        self.host, self._headers = host, dict(headers)
        self.model_key = ModelName.parse(model).key
        self._request, self._limit_s, self._starts_s = request, limit_s, starts_s
        self.asked: Asked | None = None
        """None where no load was asked for, or none came of it."""
        self._socket: socket.socket | None = None
        # A socket must not be opened after close() has looked for one.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="ollama early load")

    def start(self) -> None:
        """Begin, and return at once."""
        self._thread.start()

    def close(self) -> None:
        """Cut the connection, with which the server ends a load, and see the thread end."""
        with self._lock:
            self._closed.set()
        # One that waits for a name server cannot be woken.
        deadline = clock.monotonic() + _END_S
        while self._thread.is_alive() and clock.monotonic() < deadline:
            # close() alone would not wake a thread that waits in recv() or connect(). Once is not
            # enough: a socket that is not connecting yet is not shut down, and connects after it.
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(_PAUSE_S)

    def _run(self) -> None:
        try:
            if self._is_loaded():
                return
            path, body = self._request
            asked = self.asked = Asked(clock.time(), clock.monotonic())
            self._exchange("POST", path, body, self._limit_s)
            self.asked = asked._replace(end=clock.monotonic())
        # Also what is no OSError: a name that no encoding takes, an answer that is no HTTP.
        except Exception:
            LOG.debug("the early load came to nothing", exc_info=True)
            self.asked = None

    def _is_loaded(self) -> bool:
        deadline = clock.monotonic() + self._starts_s
        while True:
            try:
                models = json.loads(self._exchange("GET", "/api/ps", None, _ANSWER_S))["models"]
                return any(_key(model["name"]) == self.model_key for model in models)
            except OSError:
                if self._closed.wait(_PAUSE_S) or clock.monotonic() >= deadline:
                    raise

    def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None, limit_s: float
    ) -> bytes:
        """Return what the server answers with 200.

        Raises:
            OSError: it is not there, or the connection was cut.
            ValueError, http.client.HTTPException: it answers something else.
        """
        url = urlsplit(self.host.url)
        connection = http.client.HTTPConnection(url.netloc)
        log_end = log_request(method, f"{self.host.url}{path}", body)
        connection.sock = sock = self._connect(str(url.hostname), url.port or 80)
        try:
            sock.settimeout(limit_s)
            sock.limit = Limit(limit_s)
            headers = {**self._headers, "Connection": "close"}
            if body:
                headers["Content-Type"] = "application/json"
            sent = json.dumps(body) if body else None
            connection.request(method, url.path + path, sent, headers)
            response = connection.getresponse()
            log_end(f"HTTP {response.status}")
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            return response.read(ANSWER_BYTES)
        finally:
            connection.close()

    def _connect(self, name: str, port: int) -> BoundedSocket:
        last: OSError | None = None
        for family, kind, proto, _, address in socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM
        ):
            sock = BoundedSocket(family, kind, proto)
            with self._lock:
                if self._closed.is_set():
                    sock.close()
                    break
                # Known before it is connected: also that wait has to be cut.
                self._socket = sock
            try:
                sock.settimeout(_ANSWER_S)
                sock.connect(address)
            except OSError as exc:
                sock.close()
                last = exc
            else:
                return sock
        raise last or ConnectionAbortedError


def _key(name: Any) -> str:
    try:
        return ModelName.parse(name).key
    except ValueError:
        return ""
