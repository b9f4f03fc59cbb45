"""The server that ``--ollama-serve`` starts for a run: with what, tuned to what, logged where."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.process import ManagedServer, find_binary, tuned
from pytest_ollama_warmup.session.cache import cache_of
from pytest_ollama_warmup.session.state import MANAGED

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Target

LINES_SHOWN = 5


def start_server(
    config: pytest.Config, settings: Settings, targets: Iterable[Target], workers: int
) -> ManagedServer:
    """Start the run's own server, for the models that are wanted by now; it does not answer yet.

    One that is started already is as good. It ends with the run.

    Raises:
        BadSetting: the command cannot be read.
        OllamaNotFound: there is no such program.
        ServerStartFailed: somebody else has taken the port since it was chosen.
    """
    if MANAGED in config.stash:
        return config.stash[MANAGED]
    command = find_binary(settings.serve_command.value, os.environ)
    wanted = list(targets)
    contexts = {dict(target.spec.options).get("num_ctx") for target in wanted}
    environ = tuned(
        os.environ,
        workers=workers or 1,
        models=len(wanted),
        context_length=contexts.pop() if len(contexts) == 1 else None,
        port=int(settings.host.url.rpartition(":")[2]),
    )
    server = ManagedServer(command, environ, _log(config))
    server.start()
    config.stash[MANAGED] = server
    config.add_cleanup(server.stop)
    return server


def slots_of(config: pytest.Config, workers: int) -> int:
    """Return how many requests that server answers at a time, or will if it is started later."""
    if MANAGED in config.stash:
        text = config.stash[MANAGED].environ
    else:
        text = tuned(os.environ, workers=workers, models=0, context_length=None, port=0)
    try:
        return max(1, int(text["OLLAMA_NUM_PARALLEL"].strip().strip("\"'")))
    except ValueError:
        # The server does not understand it either, and answers one.
        return 1


def log_lines(server: ManagedServer) -> list[str]:
    """Say where the log of *server* is, and what it last says of errors."""
    errors = server.error_lines(LINES_SHOWN)
    about = ", which says of errors:" if errors else ""
    return [f"log of the server: {server.log}{about}", *(f"  {line}" for line in errors)]


def _log(config: pytest.Config) -> Path:
    try:
        # Where pytest keeps what outlives a run; not there with -p no:cacheprovider, and about to
        # be cleared with --cache-clear.
        if (cache := cache_of(config)) is not None:
            log = cache.mkdir("ollama-warmup") / "serve.log"
            log.unlink(missing_ok=True)
            return log
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="pytest-ollama-warmup-log-")) / "serve.log"
