"""pytest-xdist: what the controller and its workers let each other know.

Down, in ``workerinput``: the run's directory. Up, as a file in it: what the worker's tests want.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.settings import Place, Setting
from pytest_ollama_warmup.errors import BadMark
from pytest_ollama_warmup.ollama.logs import tolerating
from pytest_ollama_warmup.session.address import (
    adopt_host,
    ollama_host_for,
    places_of,
)
from pytest_ollama_warmup.session.marks import wants_of
from pytest_ollama_warmup.session.ordering import KEPT
from pytest_ollama_warmup.session.runtest import watch
from pytest_ollama_warmup.session.state import (
    PLACE,
    SETTINGS,
    WORKER_INPUT,
    check_of,
    directory_of,
    is_alone,
    is_looking,
    number_of_workers,
    settings_of,
    warmers_of,
    warn,
    worker_input,
)
from pytest_ollama_warmup.session.user_hooks import host_hook_files, refuse_late_host_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from pytest_ollama_warmup.distributed.scheduler import EndOfRun
    from pytest_ollama_warmup.session.ordering import Kept
    from pytest_ollama_warmup.warmup.plan import Want


def refuse_other_orders(config: pytest.Config) -> None:
    """Refuse what cannot be had together with groups of models.

    Raises:
        pytest.UsageError: says who asks for groups, and what to leave out.
    """
    groups, dist = settings_of(config).group_by_model, config.getoption("dist")
    if groups.value and dist not in ("load", "worksteal"):
        raise pytest.UsageError(
            f"{groups.source} has its own order, and cannot be combined with --dist={dist}. "
            "Leave one of them out."
        )


class ControllerSide:
    """Hooks of xdist's controller; *prepare* is step 2: wants, and how many tests are selected."""

    def __init__(self, config: pytest.Config, prepare: Callable[[list[Want], int], None]) -> None:
        self._config, self._prepare, self._prepared = config, prepare, False
        self._collected = 0
        self._groups: dict[str, frozenset[str]] = {}
        self._alone: set[frozenset[str]] = set()
        self._end: EndOfRun | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, config: pytest.Config, specs: Sequence[Any]) -> None:
        """Give each worker its server; a replacement gets the same one with the same spec."""
        settings = settings_of(config)
        # Without *hosts* the suite's own hook chose it, and workers cannot read that by themselves.
        if not (settings.hosts and settings.chooses_host):
            return
        urls = places_of(config, len(specs))
        for number, (spec, url) in enumerate(zip(specs, urls, strict=False)):
            env = {**spec.env, PLACE: str(Place(number, url))}
            now = spec.env.get("OLLAMA_HOST", os.environ.get("OLLAMA_HOST"))
            value = ollama_host_for(config, settings.moved(url).host, now)
            spec.env = env if value is None else {**env, "OLLAMA_HOST": value}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a new worker, also a replacement, where the run's records lie."""
        node.workerinput[WORKER_INPUT] = {"directory": str(directory_of(self._config).path)}
        if settings_of(self._config).serve.value:
            from pytest_ollama_warmup.session.managed import slots_of

            slots = slots_of(self._config, number_of_workers(self._config))
            node.workerinput[WORKER_INPUT]["slots"] = slots

    @pytest.hookimpl(optionalhook=True, wrapper=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(
        self, node: Any, ids: list[str]
    ) -> Generator[None, object, object]:
        """Prepare when the first worker knows its tests; none is scheduled until all do."""
        self._collected += 1
        worker = node.gateway.id
        wants = None if self._prepared else _read_wants(self._config, worker)
        # One on another machine cannot say it; should none, the last one is waited for in vain.
        if wants is None and self._collected >= number_of_workers(self._config):
            wants = []
        if wants is not None and not self._prepared:
            self._prepared = True
            self._prepare(wants, len(ids))
            if wants and settings_of(self._config).reorders:
                self._take_turns(wants, _read_kept(self._config, worker))
        return (yield)

    # First: a suite's own scheduler would know nothing of models.
    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> object:
        """Give the tests of one set of models to all workers at a time, where that is asked for."""
        if not settings_of(config).group_by_model.value:
            return None
        from pytest_ollama_warmup.distributed.scheduler import GroupScheduling

        return GroupScheduling(
            config,
            log,
            self._groups,
            alone=self._alone,
            is_over=lambda: self._end is not None and self._end.has_come,
        )

    def _take_turns(self, wants: list[Want], kept: list[Kept]) -> None:
        from pytest_ollama_warmup.distributed.scheduler import EndOfRun
        from pytest_ollama_warmup.warmup.plan import group_of

        listed = settings_of(self._config).listed
        self._groups.update({want.test: group_of(want, listed) for want in wants})
        for group, story, tests in kept:
            one = frozenset([*group, story] if story else group)
            self._groups.update(dict.fromkeys(tests, one))
            if story:
                self._alone.add(one)
        self._end = EndOfRun(self._config, directory_of(self._config).ending)
        self._config.pluginmanager.register(self._end, "ollama_warmup_end")


class WorkerSide:
    """Hooks of a worker."""

    def __init__(self, config: pytest.Config) -> None:
        slots = worker_input(config).get(WORKER_INPUT, {}).get("slots")
        settings = settings_of(config)
        if slots is not None and settings.max_parallel.value is None:
            slots = Setting(slots, settings.serve.source, settings.serve.given_by)
            config.stash[SETTINGS] = settings._replace(max_parallel=slots)

    # First: xdist's own sends the event on which the controller reads this file.
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write down what this worker's tests want; every worker collects the same."""
        config = session.config
        # --setup-plan and --setup-only set tests up, and run none.
        if is_looking(config):
            return
        # A worker that raises out of a hook is respawned for ever, and what it cannot say here its
        # tests will: each asks for its model at set-up.
        with tolerating("to write what the tests of this worker need"):
            found = {**_wants_or_error(session.items), "host_hooks": host_hook_files(config)}
            if found.get("wants") == [] and settings_of(config).preloads:
                from pytest_ollama_warmup.session.watch import watch_unmarked

                watch_unmarked(config)
            if found.get("wants") != []:
                watch(config)
                # Here, where the worker waits for its tests anyway, and not in the first of them.
                check_of(config)
                if found["host_hooks"] or settings_of(config).several_hosts:
                    config.pluginmanager.register(_BeforeFirstTest(), "ollama_warmup_first")
            worker: str = worker_input(config)["workerid"]
            found["kept"] = config.stash.get(KEPT, [])
            directory_of(config).requirements(worker).write(found)
            if is_alone(config) and (found.get("wants") or settings_of(config).preloads):
                _prepare_alone(config, worker)


def _prepare_alone(config: pytest.Config, worker: str) -> None:
    """Prepare what is listed, which the controller has prepared elsewhere; the rest, tests do."""
    from pytest_ollama_warmup.warmup.plan import make_plan

    warmer = warmers_of(config).own
    settings, url = warmer.settings, warmer.host.url
    warn(
        config,
        f"{worker} does not see the directory of this run: it prepares models by itself, at "
        f"{url}, and the summary does not show them",
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


def _read_kept(config: pytest.Config, worker: str) -> list[Kept]:
    from pytest_ollama_warmup.session.ordering import Kept

    content = directory_of(config).requirements(worker).read({"kept": []})
    return [Kept(*one) for one in content["kept"]]


def _read_wants(config: pytest.Config, worker: str) -> list[Want] | None:
    content = directory_of(config).requirements(worker).read()
    if content is None:
        return None
    if "error" in content:
        raise pytest.UsageError(content["error"])
    if content["wants"]:
        refuse_late_host_hooks(config, content["host_hooks"])
    from pytest_ollama_warmup.warmup.plan import Want

    return [Want.from_dict(one) for one in content["wants"]]
