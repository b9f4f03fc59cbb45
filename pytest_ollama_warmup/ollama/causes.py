"""What a server's own words mean: the one place where a text decides.

Ollama's errors have no codes. The words are those of v0.6.5 to v0.33, of its registry, and of the
libraries of Go and llama.cpp.
"""

from __future__ import annotations

import re

from pytest_ollama_warmup.errors import ApiError, Cause

# The first that is found counts.
_OF_A_PULL: tuple[tuple[str, Cause], ...] = (
    (r"file does not exist", "unknown model"),
    (r"digest mismatch", "damaged download"),
    (r"http response to https|tls: first record", "registry without TLS"),
    (r"unauthorized|access denied|realm host", "registry login"),
    (r"no space left|disk quota", "disk full"),
    # Not a bare 412, which digests and ports hold too.
    (r"newer version|manifest: 412:", "outdated server"),
    # The registry is there, and cannot answer now. A status stands after a colon: ports and digests
    # hold such digits too.
    (
        r"(?:^|: |status code )(?:429|5\d\d)(?::|$| )|connection reset|broken pipe"
        r"|server misbehaving|stream error|goaway"
        # A server that waits before it tries a part again notices only then that its last client
        # has left; who comes meanwhile hears that (v0.33: for up to 32 s).
        r"|context canceled",
        "registry busy",
    ),
    (r"\beof\b", "interrupted download"),
    (
        r"no such host|dial tcp|refused|unreachable|timeout|deadline exceeded|no route"
        r"|proxyconnect",
        "registry unreachable",
    ),
    (r"invalid model name", "invalid name"),
)
_OF_A_LOAD: tuple[tuple[str, Cause], ...] = (
    (r"does not support generate", "no text model"),
    (r"memory|cudamalloc|vram", "out of memory"),
    # "invalid character" is a damaged part beside the weights: after a pull that ended with a
    # digest mismatch the server takes its other parts as they are (seen on v0.33.0).
    (r"file size|file magic|tensor|incomplete|corrupt|invalid character", "damaged weights"),
    (r"newer version|incompatible", "outdated server"),
    (r"refused|reset|closed|lost", "runner lost"),
)


def api_error(request: str, status: int, words: str) -> ApiError:
    """Return the error of an answer to *request*, such as ``POST /api/pull``, with its cause."""
    return ApiError(request, status, words, _cause(request, status, words.lower()))


def _cause(request: str, status: int, words: str) -> Cause:
    is_pull = request.endswith("/api/pull")
    # Ollama says "model 'm' not found" (v0.6.5 and v0.33); without a model it is the path.
    if status == 404 and not is_pull and "model" in words and "not found" in words:
        return "unknown model"
    table = _OF_A_PULL if is_pull else _OF_A_LOAD
    reason = next((cause for sign, cause in table if re.search(sign, words)), None)
    return reason or ("server busy" if status == 503 else "other")
