"""The controller of pytest-xdist: settings and hosts down, requirements up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.settings import Place
from pytest_ollama_warmup.session.address import (
    ollama_host_for,
    places_of,
)
from pytest_ollama_warmup.session.state import (
    PLACE,
    WORKER_INPUT,
    directory_of,
    number_of_workers,
    settings_of,
)
from pytest_ollama_warmup.session.user_hooks import refuse_late_host_hooks
from pytest_ollama_warmup.text import explained

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
            explained(
                f"{groups.source} has its own order, and cannot be combined with --dist={dist}. "
                "Leave one of them out.",
                "groups",
            )
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
            story_group = frozenset([*group, story] if story else group)
            self._groups.update(dict.fromkeys(tests, story_group))
            if story:
                self._alone.add(story_group)
        self._end = EndOfRun(self._config, directory_of(self._config).ending)
        self._config.pluginmanager.register(self._end, "ollama_warmup_end")


def _read_kept(config: pytest.Config, worker: str) -> list[Kept]:
    from pytest_ollama_warmup.session.ordering import Kept

    file = directory_of(config).requirements(worker)
    return [Kept(*fields) for fields in file.read()["kept"]] if file.exists() else []


def _read_wants(config: pytest.Config, worker: str) -> list[Want] | None:
    file = directory_of(config).requirements(worker)
    # Not there either where the worker's disk is full.
    if not file.exists():
        return None
    content = file.read()
    if "error" in content:
        raise pytest.UsageError(content["error"])
    if content["wants"]:
        refuse_late_host_hooks(config, content["host_hooks"])
    from pytest_ollama_warmup.warmup.plan import Want

    return [Want.from_dict(fields) for fields in content["wants"]]
