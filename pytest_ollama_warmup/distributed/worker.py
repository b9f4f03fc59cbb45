"""A worker of pytest-xdist: the requirements of its tests out, its host in.

What it has met is written at its end, as in any other process: ``session.notes``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.settings import Setting
from pytest_ollama_warmup.errors import BadMark
from pytest_ollama_warmup.ollama.logs import tolerating
from pytest_ollama_warmup.session.address import (
    adopt_host,
)
from pytest_ollama_warmup.session.marks import wants_of
from pytest_ollama_warmup.session.ordering import KEPT
from pytest_ollama_warmup.session.runtest import watch
from pytest_ollama_warmup.session.state import (
    NEEDED,
    SETTINGS,
    WORKER_INPUT,
    check_of,
    directory_of,
    is_alone,
    is_looking,
    settings_of,
    warmers_of,
    warn,
    worker_input,
)
from pytest_ollama_warmup.session.user_hooks import host_hook_files
from pytest_ollama_warmup.text import explained

if TYPE_CHECKING:
    from collections.abc import Generator


class WorkerSide:
    """Hooks of a worker."""

    def __init__(self, config: pytest.Config) -> None:
        slots = worker_input(config).get(WORKER_INPUT, {}).get("slots")
        settings = settings_of(config)
        if slots is not None and settings.max_parallel.value is None:
            slots = Setting(slots, settings.serve.source, settings.serve.given_by)
            config.stash[SETTINGS] = settings._replace(max_parallel=slots)

    # First: xdist's own sends the event on which the controller reads this file.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write down what this worker's tests want; every worker collects the same."""
        # --setup-plan and --setup-only set tests up, and run none.
        if not is_looking(session.config):
            self._write_requirements(session)
        result = yield
        if NEEDED in session.config.stash:
            # While the controller prepares models, and not in the first test of each worker, when
            # all would import at once.
            with tolerating("to import what the tests of this worker need"):
                check_of(session.config)
                for name in ("ollama.client", "warmup.still_loaded"):
                    import_module(f"pytest_ollama_warmup.{name}")
        return result

    def _write_requirements(self, session: pytest.Session) -> None:
        config = session.config
        # A worker that raises out of a hook is respawned for ever, and what it cannot say here its
        # tests will: each asks for its model at set-up.
        with tolerating("to write what the tests of this worker need"):
            content = {**_wants_or_error(session.items), "host_hooks": host_hook_files(config)}
            if content.get("wants") == [] and settings_of(config).preloads:
                from pytest_ollama_warmup.session.watch import watch_unmarked

                watch_unmarked(config)
            if content.get("wants") != []:
                watch(config)
                if content["host_hooks"] or settings_of(config).several_hosts:
                    config.pluginmanager.register(_BeforeFirstTest(), "ollama_warmup_first")
            worker: str = worker_input(config)["workerid"]
            content["kept"] = config.stash.get(KEPT, [])
            directory_of(config).requirements(worker).write(content)
            if is_alone(config) and (content.get("wants") or settings_of(config).preloads):
                _prepare_alone(config, worker)


def _prepare_alone(config: pytest.Config, worker: str) -> None:
    """Prepare what is listed, which the controller has prepared elsewhere; the rest, tests do."""
    from pytest_ollama_warmup.warmup.plan import make_plan

    warmer = warmers_of(config).own
    settings, url = warmer.settings, warmer.host.url
    warn(
        config,
        explained(
            f"{worker} does not see the directory of this run: it prepares models by itself, at "
            f"{url}, and the summary does not show them",
            "worker-alone",
        ),
    )
    if settings.preloads:
        for target in make_plan(settings.listed, (), up_front=True).targets.values():
            outcome = warmer.outcome(target._replace(host=url))
            if not outcome.ready:
                warn(config, f"{worker}: {outcome.error}".replace("\n", " "))
            elif outcome.is_watched:
                directory_of(config).watched.set()


class _BeforeFirstTest:
    """Takes over, once, the server that the controller got from a hook, or gives in place."""

    # A wrapper that is registered after the one that looks at models: it comes before that.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        # It has prepared by now: no test is sent before.
        item.config.pluginmanager.unregister(self)
        adopt_host(item.config)
        return (yield)


def _wants_or_error(items: list[pytest.Item]) -> dict[str, Any]:
    try:
        return {"wants": [want.to_dict() for want in wants_of(items)]}
    except BadMark as exc:
        return {"error": str(exc)}
