"""Serve a folder of models as a registry that Ollama can pull from, slowly or badly if asked to.

Run as ``python -m tests.live.registry DIRECTORY`` it prints its port and serves until stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

CHUNK = 64 * 1024
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.ollama.image."
CONFIG = json.dumps({"model_format": "gguf", "rootfs": {"type": "layers", "diff_ids": []}}).encode()


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong from now on; assign a field at any time, reset with ``Faults()``.

    Positions are bytes from the start of a blob, so a download that resumes behind one meets the
    fault at once; a blob shorter than that never does. Times are seconds.
    """

    stall_at: int | None = None
    stall_s: float | None = None
    """How long a stall lasts; None: until its field is taken back."""
    stall_after: int | None = None
    """Bytes that a connection sends before it stalls: a download that resumes comes as far again."""
    drop_at: int | None = None
    drops: int = 0
    """How many more answers are cut at ``drop_at``."""
    unavailable: int = 0
    """How many more requests are answered 503."""
    unauthorized: bool = False
    unknown: bool = False
    """Answer 404 for every model, as for one that nobody pushed."""
    manifest_s: float = 0.0
    head_s: float = 0.0
    wrong_bytes: int = 0
    """How many more answers with weights are zeros; the server would not verify small parts beside
    them again."""


@dataclass(slots=True)
class Request:
    """One request as it came in, and how many bytes of a blob went out."""

    method: str
    path: str
    range: str | None
    sent: int = 0


@dataclass(frozen=True, slots=True)
class _Blob:
    source: Path | bytes
    digest: str
    size: int

    @classmethod
    def of(cls, source: Path | bytes) -> _Blob:
        if isinstance(source, bytes):
            return cls(source, f"sha256:{hashlib.sha256(source).hexdigest()}", len(source))
        sha = hashlib.sha256()
        with source.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                sha.update(chunk)
        return cls(source, f"sha256:{sha.hexdigest()}", source.stat().st_size)

    def read(self, start: int, size: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start : start + size]
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(size)


class Registry:
    """Read-only registry over ``NAME.gguf`` files, on a loopback port of its own.

    ``rate`` is in bytes per second for all downloads together, ``rate_each`` for each of them;
    they and ``faults`` may be changed while a download runs.
    """

    def __init__(self, models_dir: Path, *, rate: float | None = None) -> None:
        self.rate = rate
        self.rate_each: float | None = None
        self.faults = Faults()
        self.closing = threading.Event()
        self._models = {path.stem: path for path in sorted(models_dir.glob("*.gguf"))}
        self._manifests: dict[str, bytes] = {}
        self._blobs: dict[str, _Blob] = {}
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._line_free_at = 0.0
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.registry = self
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Registry:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Stalled and throttled downloads must end first: server_close() waits for their threads.
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or the last :meth:`forget`, oldest first."""
        with self._lock:
            return list(self._requests)

    def forget(self) -> None:
        """Empty the list of requests."""
        with self._lock:
            self._requests.clear()

    def name(self, model: str, tag: str = "latest") -> str:
        """Return the name to pull *model* by; it needs ``insecure``. Any tag will do."""
        return f"localhost:{self.port}/t/{model}:{tag}"

    def add(self, model: str, path: Path) -> None:
        """Serve the GGUF file at *path* as *model* too; params and template stand beside it."""
        with self._lock:
            self._models[model] = path
            self._manifests.pop(model, None)

    def log(self, request: Request) -> None:
        """Note *request*."""
        with self._lock:
            self._requests.append(request)

    def manifest(self, model: str) -> bytes | None:
        """Return the manifest of *model*; None if there is no such model."""
        with self._lock:
            if (gguf := self._models.get(model)) is None:
                return None
            if model not in self._manifests:
                self._manifests[model] = self._make_manifest(gguf)
            return self._manifests[model]

    def blob(self, digest: str) -> _Blob | None:
        """Return a blob of a model whose manifest was asked for."""
        with self._lock:
            return self._blobs.get(digest)

    def take(self, fault: str) -> bool:
        """Use up one of a counted fault; False if none are left."""
        with self._lock:
            if (left := getattr(self.faults, fault)) > 0:
                setattr(self.faults, fault, left - 1)
            return bool(left > 0)

    def wait_for_line(self, size: int) -> None:
        """Sleep for as long as *size* bytes take at the current rate."""
        with self._lock:
            if self.rate is None:
                return
            now = time.monotonic()
            self._line_free_at = max(now, self._line_free_at) + size / self.rate
            pause = self._line_free_at - now
        self.closing.wait(pause)

    def stall(self, fault: str) -> None:
        """Sleep until the stall is over, taken back, or the registry closes."""
        began = time.monotonic()
        while getattr(self.faults, fault) is not None and not self.closing.wait(0.02):
            limit_s = self.faults.stall_s
            if limit_s is not None and time.monotonic() - began >= limit_s:
                return

    def _make_manifest(self, gguf: Path) -> bytes:
        def layer(media_type: str, source: Path | bytes) -> dict[str, object]:
            blob = _Blob.of(source)
            self._blobs[blob.digest] = blob
            return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

        layers = [layer(f"{LAYER_TYPE}model", gguf)]
        for kind in ("template", "params"):
            if (beside := gguf.with_suffix(f".{kind}")).exists():
                layers.append(layer(f"{LAYER_TYPE}{kind}", beside.read_bytes()))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": layer(CONFIG_TYPE, CONFIG),
            "layers": layers,
        }
        return json.dumps(manifest).encode()


class _Http(ThreadingHTTPServer):
    registry: Registry
    # Joining the threads on close shows a handler that hangs, and leaves no socket open behind.
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        # A puller that goes away is what half of the tests are about.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0 of the base class stays: each answer closes its connection, so that none is idle
    # when the registry closes and a short answer is seen as cut.
    server: _Http
    # Go may open a connection and never use it: close() would wait for ever for its thread.
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing; requests are in ``Registry.requests``."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        registry, faults = self.server.registry, self.server.registry.faults
        request = Request(self.command, self.path, self.headers.get("Range"))
        registry.log(request)
        if self.path.startswith("/token?"):
            self._send(200, json.dumps({"token": "worthless"}).encode())
        elif registry.take("unavailable"):
            self._send(503, b"the registry is busy")
        elif faults.unauthorized:
            # Ollama asks only a realm on this very host for a token, tries again, then gives up.
            realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="t",scope="pull"'
            self._send(401, b"", {"WWW-Authenticate": realm})
        elif found := re.fullmatch(r"/v2/t/([^/]+)/manifests/[^/]+", self.path):
            registry.closing.wait(faults.manifest_s)
            manifest = None if faults.unknown else registry.manifest(found[1])
            if manifest is None:
                self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            else:
                self._send(200, manifest, {"Content-Type": MANIFEST_TYPE})
        elif found := re.fullmatch(r"/v2/t/[^/]+/blobs/(sha256:[0-9a-f]{64})", self.path):
            if (blob := registry.blob(found[1])) is None:
                self._send(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
            else:
                self._answer_blob(request, blob)
        else:
            self._send(404, b"")

    def _answer_blob(self, request: Request, blob: _Blob) -> None:
        registry = self.server.registry
        if request.method == "HEAD":
            registry.closing.wait(registry.faults.head_s)
            self._head(200, {"Content-Length": str(blob.size)})
        elif request.range is None:
            # Ollama only wants to know where to download from and never reads this body; sent all
            # the same, it would use up the rate and the faults that are meant for the download.
            self._send(200, b"", {"Location": self.path})
        elif (span := re.fullmatch(r"bytes=(\d+)-(\d+)", request.range)) is None:
            self._send(416, b"")
        else:
            start, end = int(span[1]), min(int(span[2]) + 1, blob.size)
            headers = {
                "Content-Length": str(end - start),
                "Content-Range": f"bytes {start}-{end - 1}/{blob.size}",
            }
            self._head(206, headers)
            self._send_span(request, blob, start, end)

    def _send_span(self, request: Request, blob: _Blob, start: int, end: int) -> None:
        registry, first = self.server.registry, start
        stalled, free_at = False, 0.0
        wrong = blob.size > CHUNK and registry.take("wrong_bytes")
        while start < end and not registry.closing.is_set():
            faults = registry.faults
            drop_at, after = faults.drop_at, faults.stall_after
            stalls = {
                "stall_at": faults.stall_at,
                "stall_after": None if after is None else first + after,
            }
            if drop_at is not None and start >= drop_at and registry.take("drops"):
                return
            due = [fault for fault, at in stalls.items() if at is not None and start >= at]
            if due and not stalled:
                stalled = True
                registry.stall(due[0])
            # A chunk ends where the next fault is due.
            ends = (drop_at, *stalls.values())
            stops = [end, start + CHUNK, *(at for at in ends if at and at > start)]
            data = blob.read(start, min(stops) - start)
            if wrong:
                data = bytes(len(data))
            registry.wait_for_line(len(data))
            if registry.rate_each is not None:
                free_at = max(time.monotonic(), free_at) + len(data) / registry.rate_each
                registry.closing.wait(free_at - time.monotonic())
            self.wfile.write(data)
            start += len(data)
            request.sent += len(data)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """Serve a folder until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a folder of models as a registry.")
    parser.add_argument("directory", type=Path, help="Folder of NAME.gguf files")
    parser.add_argument("--rate", type=float, help="Bytes per second for all downloads together")
    args = parser.parse_args()
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    with Registry(args.directory, rate=args.rate) as registry:
        print(registry.port, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
