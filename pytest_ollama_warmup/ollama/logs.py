"""Debug lines that say what is asked of a server, request by request: no header, no login, no key.

``pytest --log-cli-level=debug`` shows them.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.text import clean, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LOG = logging.getLogger("pytest_ollama_warmup")
# Of a body: what a suite's own warm-up request holds may be an image.
_BODY_CHARACTERS = 300


def log_request(
    method: str, url: object, body: Mapping[str, object] | None = None
) -> Callable[[str], None]:
    """Log that a request leaves; returns what logs its end, with the time since."""
    if not LOG.isEnabledFor(logging.DEBUG):
        return lambda end: None
    begin = clock.monotonic()
    shown = "" if body is None else f" {clean(json.dumps(body), _BODY_CHARACTERS)}"
    LOG.debug("%s %s%s", method, url, shown)

    def log_end(end: str) -> None:
        LOG.debug("%s %s: %s after %s", method, url, end, seconds(clock.monotonic() - begin))

    return log_end


@contextmanager
def tolerating(what: str) -> Iterator[None]:
    """Go on where *what* fails, which the run does not depend on; the log has the traceback."""
    try:
        yield
    except Exception:
        LOG.debug("%s failed", what, exc_info=True)
