"""What stands before a server and answers in its place now and then: a gateway, a proxy."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Status, kind and body.
    Answer = tuple[int, str, bytes]


@contextmanager
def front(
    port: int, answer: Callable[[BaseHTTPRequestHandler, str], Answer | None], prefix: str = ""
) -> Iterator[str]:
    """Pass on to *port* all to which *answer*, given a request and its path, returns None.

    The *prefix* of a path is left out. Yields the address, like ``127.0.0.1:1234``.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # A proxy is asked for the whole URL.
            path = urlsplit(self.path).path.removeprefix(prefix)
            status, kind, body = answer(self, path) or self.pass_on(path, sent)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def pass_on(self, path: str, sent: bytes) -> Answer:
            behind = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            behind.request(self.command, path, sent, {"Content-Type": "application/json"})
            got = behind.getresponse()
            found = got.status, got.getheader("Content-Type", ""), got.read()
            behind.close()
            return found

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
