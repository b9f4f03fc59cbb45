"""The server that ``--ollama-serve`` starts for a run: with what, tuned to what, logged where."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.process import ManagedServer, find_binary, tuned
from pytest_ollama_warmup.roles import number_of_workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pytest

    from pytest_ollama_warmup.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Target

LINES_SHOWN = 5


def start_server(
    config: pytest.Config, settings: Settings, targets: Iterable[Target]
) -> ManagedServer:
    """Start the run's own server, for the models that are wanted by now; it does not answer yet.

    Raises:
        BadSetting: the command cannot be read.
        OllamaNotFound: there is no such program.
        PortTaken: somebody else has taken the port since it was chosen.
    """
    command = find_binary(settings.serve_command.value, os.environ)
    wanted = list(targets)
    contexts = {dict(one.spec.options).get("num_ctx") for one in wanted}
    environ = tuned(
        os.environ,
        workers=number_of_workers(config) or 1,
        models=len(wanted),
        context_length=contexts.pop() if len(contexts) == 1 else None,
        port=int(settings.host.url.rpartition(":")[2]),
    )
    server = ManagedServer(command, environ, _log(config))
    server.start()
    return server


def slots_of(workers: int, environ: Mapping[str, str]) -> int:
    """Return how many requests that server answers at a time."""
    text = tuned(environ, workers=workers, models=0, context_length=None, port=0)
    try:
        return max(1, int(text["OLLAMA_NUM_PARALLEL"].strip().strip("\"'")))
    except ValueError:
        # The server does not understand it either, and answers one.
        return 1


def log_lines(server: ManagedServer) -> list[str]:
    """Say where the log of *server* is, and what it last says of errors."""
    errors = server.error_lines(LINES_SHOWN)
    told = ", which says of errors:" if errors else ""
    return [f"log of the server: {server.log}{told}", *(f"  {line}" for line in errors)]


def _log(config: pytest.Config) -> Path:
    try:
        # Where pytest keeps what outlives a run; not there with -p no:cacheprovider.
        log: Path = config.cache.mkdir("ollama-warmup") / "serve.log"
        log.unlink(missing_ok=True)
    except (AttributeError, OSError):
        return Path(tempfile.mkdtemp(prefix="pytest-ollama-warmup-log-")) / "serve.log"
    return log
