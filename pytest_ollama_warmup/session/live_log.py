"""Have pytest show our log lines also where its own hooks do not, because ours run around them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.ollama.logs import LOG

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


@contextmanager
def showing_log(config: pytest.Config) -> Iterator[None]:
    """Send our lines to ``--log-cli-level`` and ``--log-file``, unless pytest does so by now."""
    handlers = list(_handlers(config))
    before = LOG.level
    for handler, level in handlers:
        LOG.addHandler(handler)
        LOG.setLevel(min(LOG.level or level, level))
    try:
        yield
    finally:
        LOG.setLevel(before)
        for handler, _ in handlers:
            LOG.removeHandler(handler)


def _handlers(config: pytest.Config) -> Iterator[tuple[logging.Handler, int]]:
    plugin: Any = config.pluginmanager.get_plugin("logging-plugin")
    for name in ("cli", "file"):
        handler = getattr(plugin, f"log_{name}_handler", None)
        level = getattr(plugin, f"log_{name}_level", None)
        if handler is not None and level and handler not in logging.getLogger().handlers:
            handler.setLevel(level)
            yield handler, level
