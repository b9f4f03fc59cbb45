"""A server's own words, and the cause that they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.causes import api_error

if TYPE_CHECKING:
    from pytest_ollama_warmup.errors import Cause

REGISTRY = 'Get "https://registry.ollama.ai/v2/library/m/manifests/1b"'


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("pull model manifest: file does not exist", "unknown model"),
        ("digest mismatch, file must be downloaded again: want a, got b", "damaged download"),
        (f"{REGISTRY}: http: server gave HTTP response to HTTPS client", "registry without TLS"),
        (
            "remote error: tls: first record does not look like a TLS handshake",
            "registry without TLS",
        ),
        ("unauthorized: access denied", "registry login"),
        ("write /models/blobs/sha256-a: no space left on device", "disk full"),
        ("write /models/blobs/sha256-a: disk quota exceeded", "disk full"),
        ("pull model manifest: 412: newer version of Ollama", "outdated server"),
        (f"{REGISTRY}: 503: busy", "registry busy"),
        ("max retries exceeded: unexpected status code 502", "registry busy"),
        ("read tcp 10.0.0.2:4242->1.2.3.4:443: read: connection reset by peer", "registry busy"),
        ("context canceled", "registry busy"),
        ("max retries exceeded: EOF", "interrupted download"),
        (f"{REGISTRY}: dial tcp: lookup registry.ollama.ai: no such host", "registry unreachable"),
        (f"{REGISTRY}: net/http: TLS handshake timeout", "registry unreachable"),
        ("dial tcp 1.2.3.4:443: connect: connection refused", "registry unreachable"),
        ("invalid model name", "invalid name"),
        ("sha256:5034120e is wrong on port 5034", "other"),
    ],
)
def test_what_a_pull_ends_with_has_a_cause(words: str, cause: Cause) -> None:
    assert cause == api_error("POST /api/pull", 200, words).cause


@pytest.mark.parametrize(
    ("status", "words", "cause"),
    [
        (400, '"m" does not support generate', "no text model"),
        (500, "model requires more system memory (41 GiB)", "out of memory"),
        (500, "cudaMalloc failed", "out of memory"),
        (500, "invalid file magic", "damaged weights"),
        (500, "this model needs a newer version of Ollama", "outdated server"),
        (503, "server busy, please try again.", "server busy"),
        (500, "dial tcp 127.0.0.1:4242: connection refused", "runner lost"),
        (500, "llama runner process has terminated", "other"),
        (404, "model 'm' not found", "unknown model"),
        (404, 'model "m" not found, try pulling it first', "unknown model"),
        (404, "404 page not found", "other"),
        (404, '{"detail":"Not Found"}', "other"),
        (404, "no such model", "other"),
        (500, "model 'm' not found", "other"),
    ],
)
def test_what_a_load_or_a_look_ends_with_has_a_cause(status: int, words: str, cause: Cause) -> None:
    assert cause == api_error("/api/show", status, words).cause
