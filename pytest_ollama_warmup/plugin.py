"""The pytest hooks, each a guard and a delegate. Start reading here.

This module is imported in every pytest run of an environment that has the plugin installed. A run
that asks for nothing, by an option, a file or the environment, and has no test that needs a model
imports nothing more: neither the settings nor what reads a mark, nor what talks to a server.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.options import add_options

# One name for all of its state: pytest examines each name of this module in each run.
from pytest_ollama_warmup.session import state
from pytest_ollama_warmup.session.fixtures import (
    _ollama_elsewhere,
    ollama_async_client,
    ollama_client,
    ollama_emulator,
    ollama_host,
    ollama_model,
    ollama_models,
    ollama_openai_base_url,
    ollama_options,
)
from pytest_ollama_warmup.session.mark_names import MARK_HELPS, concerns

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ollama_warmup.session.session import WarmupSession
    from pytest_ollama_warmup.warmup.plan import Want

# In the process that prepares models: the controller of xdist, or the only one.
_SESSION: pytest.StashKey[WarmupSession] = pytest.StashKey()

# pytest finds fixtures in the modules of its plugins.
__all__ = [
    "_ollama_elsewhere",
    "ollama_async_client",
    "ollama_client",
    "ollama_emulator",
    "ollama_host",
    "ollama_model",
    "ollama_models",
    "ollama_openai_base_url",
    "ollama_options",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the table of options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Read the settings, and set OLLAMA_HOST before conftests create their own clients."""
    if not state.begin(early_config):
        return
    settings = state.settings_of(early_config)
    usable = not settings.off and settings.problem is None
    if usable:
        from pytest_ollama_warmup.session.address import set_up_environment

        set_up_environment(early_config)
    # A worker, and a run inside a test, find what is listed ready.
    outer = settings.inner or settings.served or "PYTEST_XDIST_WORKER" in os.environ
    looking = state.is_looking(early_config, early_config.known_args_namespace)
    if usable and settings.lists and not (outer or looking):
        from pytest_ollama_warmup.session.early import ask_early

        ask_early(early_config, settings)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that suites can implement."""
    from pytest_ollama_warmup.session import hookspecs as hookspec

    pluginmanager.add_hookspecs(hookspec)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and what the process's role in xdist asks for."""
    for line in MARK_HELPS:
        config.addinivalue_line("markers", line)
    if _is_off(config):
        return
    if state.is_asked(config) and state.settings_of(config).report.value and _prepares(config):
        from pytest_ollama_warmup.session.reports import prepare_reports

        prepare_reports(config)
    if state.is_worker(config):
        from pytest_ollama_warmup.distributed.worker import WorkerSide

        config.pluginmanager.register(WorkerSide(config), "ollama_warmup_worker")
    elif state.is_distributing(config):
        from pytest_ollama_warmup.distributed.controller import (
            ControllerSide,
            refuse_other_orders,
        )

        refuse_other_orders(config)
        side = ControllerSide(config, lambda wants, selected: _prepare(config, wants, selected))
        config.pluginmanager.register(side, "ollama_warmup_controller")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which models are listed for each run, and where the server is."""
    if _is_off(config) or state.is_worker(config) or not _is_up_front(config):
        return []
    from pytest_ollama_warmup.session.header import header_lines

    if not _prepares(config):
        return header_lines(config, looking=True)
    return header_lines(config, looking=False) + _session_of(config).header_notes


# Wrapping and first: a conftest's own hook must neither get in front nor silence this one, since
# suites look for their models in it, and when their modules are imported.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, object, object]:
    """Step 1: prepare the models listed on the command line or in the environment."""
    if not _is_off(session.config):
        if session.config.hook.pytest_ollama_host.get_hookimpls():
            from pytest_ollama_warmup.session.user_hooks import note_host_hooks

            note_host_hooks(session.config)
        if state.has_other_address(session.config):
            from pytest_ollama_warmup.session.address import read_address_again

            read_address_again(session.config)
    if _prepares(session.config) and _is_up_front(session.config):
        from pytest_ollama_warmup.session.live_log import showing_log

        with showing_log(session.config):
            _session_of(session.config).start()
    return (yield)


# First: -m "not requires_model" must see the mark on users of our fixtures too. And last, after
# what deselects and shuffles.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Mark the tests that get one of our fixtures, and order them where that is asked for."""
    if concerns(items):
        from pytest_ollama_warmup.session.marks import prepare_items

        prepare_items(items)
    result = yield
    if state.is_asked(config) and state.settings_of(config).reorders and not _is_off(config):
        from pytest_ollama_warmup.session.ordering import order

        order(items, state.settings_of(config))
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Step 2 in a single process: prepare what the selected tests need."""
    config = session.config
    # After collection errors pytest runs no test, unless asked to.
    runs = not session.testsfailed or config.option.continue_on_collection_errors
    if _prepares(config) and not state.is_distributing(config) and runs:
        wants = _wants_of(session)
        if wants:
            from pytest_ollama_warmup.session.runtest import watch
            from pytest_ollama_warmup.session.user_hooks import (
                host_hook_files,
                refuse_late_host_hooks,
            )

            watch(config)
            refuse_late_host_hooks(config, host_hook_files(config))
        elif _is_up_front(config):
            from pytest_ollama_warmup.session.watch import watch_unmarked

            watch_unmarked(config)
        _prepare(config, wants, len(session.items))
    result = yield
    if _SESSION in config.stash:
        config.stash[_SESSION].after_tests()
    return result


def _wants_of(session: pytest.Session) -> list[Want]:
    if not concerns(session.items):
        return []
    from pytest_ollama_warmup.errors import BadMark
    from pytest_ollama_warmup.session.marks import wants_of

    try:
        return wants_of(session.items)
    except BadMark as exc:
        raise pytest.UsageError(str(exc)) from None


# Not first: pytest's own skip marks and the conftests of the suite come before.
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose model is not ready."""
    if state.NEEDED in item.config.stash:
        from pytest_ollama_warmup.session.runtest import set_up

        set_up(item)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep what the run has learned for the next one."""
    config = session.config
    if state.SETTINGS not in config.stash:
        return
    if state.is_worker(config):
        from pytest_ollama_warmup.session.notes import write_notes

        write_notes(config)
    elif _prepares(config) and (state.has_outcomes(config) or _leaves(config)):
        _session_of(config).learn()
    elif state.EARLY in config.stash:
        from pytest_ollama_warmup.session.cache import remember_run

        remember_run(config, [])


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Write the table of models, where there is something in it."""
    if state.has_outcomes(config) and _prepares(config) and not config.option.no_summary:
        _session_of(config).summarize()


def _prepares(config: pytest.Config) -> bool:
    # A worker that raises here is respawned for ever; looking must never download.
    return not (_is_off(config) or state.is_worker(config) or state.is_looking(config))


def _is_off(config: pytest.Config) -> bool:
    return state.is_asked(config) and state.settings_of(config).off


def _is_up_front(config: pytest.Config) -> bool:
    return state.is_asked(config) and state.settings_of(config).up_front


def _leaves(config: pytest.Config) -> bool:
    return _SESSION in config.stash and config.stash[_SESSION].leaves_models


def _prepare(config: pytest.Config, wants: list[Want], selected: int) -> None:
    if _prepares(config) and (wants or _is_up_front(config)):
        from pytest_ollama_warmup.session.live_log import showing_log

        with showing_log(config):
            _session_of(config).before_tests(wants, selected)


def _session_of(config: pytest.Config) -> WarmupSession:
    if _SESSION not in config.stash:
        from pytest_ollama_warmup.session.session import WarmupSession

        session = config.stash[_SESSION] = WarmupSession(config)
        config.add_cleanup(session.close)
        from pytest_ollama_warmup.session.reports import is_read, prepare_reports

        if is_read(config):
            prepare_reports(config).session = session
    return config.stash[_SESSION]
