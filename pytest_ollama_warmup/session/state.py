"""Which process of a run this is, what it is asked for, and where it keeps its state.

Part of every pytest run: what a run needs that is asked for something is imported in functions.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.process import ManagedServer
    from pytest_ollama_warmup.session.skipped_last_run import Gates
    from pytest_ollama_warmup.warmup.check import Check
    from pytest_ollama_warmup.warmup.run_directory import RunDirectory
    from pytest_ollama_warmup.warmup.warmer import Warmers

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
# In each process that looks at a test: what it knows of the hosts, and of the tests.
WARMERS: pytest.StashKey[Warmers] = pytest.StashKey()
CHECK: pytest.StashKey[Check] = pytest.StashKey()
GATES: pytest.StashKey[Gates] = pytest.StashKey()
# The load that was asked for before conftests were imported, by the key of its model.
EARLY: pytest.StashKey[Mapping[str, EarlyLoad]] = pytest.StashKey()
# The server that was started then.
MANAGED: pytest.StashKey[ManagedServer] = pytest.StashKey()
# Set where a selected test needs Ollama: the hooks of each test look no further without it.
NEEDED = pytest.StashKey[bool]()
# Whether the run is asked for something, by the command line, the environment or a file.
_ASKED = pytest.StashKey[bool]()
# The environment before conftests were imported: what they set is no setting of the user's.
_ENVIRON: pytest.StashKey[Mapping[str, str]] = pytest.StashKey()
# What OLLAMA_HOST held then, after the plugin has set it.
AT_START: pytest.StashKey[str | None] = pytest.StashKey()
_DIRECTORY: pytest.StashKey[RunDirectory] = pytest.StashKey()
WORKER_INPUT = "ollama_warmup"
# In the environment of a worker: the server that the run chose for it, see ``Place``.
PLACE = "PYTEST_OLLAMA_WARMUP_PLACE"
# The file that GitHub shows as the summary of a job.
GITHUB_SUMMARY = "GITHUB_STEP_SUMMARY"

# Where modules are found when the run begins, before pytest adds the directories of tests.
SYS_PATH = tuple(sys.path)

_LOOKING = (
    "help",
    "version",
    "markers",
    "collectonly",
    "showfixtures",
    "show_fixtures_per_test",
    "cacheshow",
    "setupplan",
    "setuponly",
)


class OllamaWarmupWarning(pytest.PytestWarning):
    """Something about a run's models that the run goes on without."""


def warn(config: pytest.Config, text: str) -> bool:
    """Warn; False where warnings are errors: without us the tests would run."""
    try:
        config.issue_config_time_warning(OllamaWarmupWarning(text), stacklevel=3)
    except OllamaWarmupWarning:
        return False
    return True


def warn_unencrypted(config: pytest.Config, hosts: Iterable[Host]) -> str:
    """Warn of secrets that are sent to *hosts* unencrypted, once in a run for each of them.

    Returns the warning where it was one of those that are errors.
    """
    extra = settings_of(config).headers.value
    exposed = [host for host in hosts if host.login or extra]
    if not exposed:
        return ""
    from pytest_ollama_warmup.ollama.requests import readable_on_the_way

    # The processes of a run see by the flag what one of them has said.
    new = [host for host in exposed if directory_of(config).warned(host.url).set()]
    text = readable_on_the_way(new, extra)
    return "" if not text or warn(config, text) else text


def worker_input(config: pytest.Config) -> dict[str, Any]:
    """Return what the controller of pytest-xdist gives this worker; empty in other processes."""
    values: dict[str, Any] = getattr(config, "workerinput", {})
    return values


def is_worker(config: pytest.Config) -> bool:
    """Whether this is a worker of pytest-xdist; its environment variables leak into inner runs."""
    return hasattr(config, "workerinput")


def is_distributing(config: pytest.Config) -> bool:
    """Whether this is the controller of pytest-xdist, which runs no tests itself."""
    return not is_worker(config) and config.getoption("dist", "no") != "no"


def number_of_workers(config: pytest.Config) -> int:
    """Return how many workers pytest-xdist starts; 0 where tests run in this process."""
    if not is_distributing(config):
        return 0
    return count_workers(config.getoption("tx"))


def count_workers(specs: list[str]) -> int:
    """Return how many workers pytest-xdist's ``--tx`` asks for."""
    numbers = (re.match(r"(\d+)\*", text) for text in specs)
    return sum(int(match[1]) if match else 1 for match in numbers)


def wants_report(config: pytest.Config) -> bool:
    """Whether somebody reads when each test of the run took place."""
    settings = settings_of(config)
    # A worker inherits what a run inside a test knows itself by.
    for_github = bool(os.environ.get(GITHUB_SUMMARY)) and (is_worker(config) or not settings.inner)
    return bool(settings.report.value) or for_github


def is_looking(config: pytest.Config, options: object | None = None) -> bool:
    """Whether the run only shows something; it must never touch the network.

    *options* is the namespace to read where ``config.option`` is not final yet.
    """
    return any(getattr(options or config.option, name, False) for name in _LOOKING)


def begin(config: pytest.Config) -> bool:
    """Return whether the run is asked for something, before conftests are imported.

    If it is not, its settings are read by the first test that needs them, as they are now.
    """
    config.stash[_ENVIRON] = dict(os.environ)
    config.stash[AT_START] = os.environ.get("OLLAMA_HOST")
    return is_asked(config)


def has_other_address(config: pytest.Config) -> bool:
    """Whether OLLAMA_HOST was set since: by a conftest, a plugin or a test."""
    now = os.environ.get("OLLAMA_HOST")
    return now != config.stash.get(AT_START, now)


def is_asked(config: pytest.Config) -> bool:
    """Whether an option, a key of a file or the environment asks the plugin for something.

    OLLAMA_HOST does not: it says where the server is of those who need one.
    """
    if _ASKED not in config.stash:
        listed, options = os.environ.get("OLLAMA_PRELOAD_MODELS"), _options(config)
        config.stash[_ASKED] = bool(
            (listed and listed.strip())
            or PLACE in os.environ
            or any(getattr(options, option.dest, None) is not None for option in OPTIONS)
            or any(_is_in_file(config, option.ini) for option in OPTIONS)
        )
    return config.stash[_ASKED]


def _is_in_file(config: pytest.Config, key: str) -> bool:
    try:
        return config.getini(key) is not None
    # Of another type than it should be.
    except (pytest.UsageError, ValueError, TypeError):
        return True


def _options(config: pytest.Config) -> object:
    # Those of before conftests, which may change the others. There are none where a conftest names
    # the plugin.
    return config.known_args_namespace if _ENVIRON in config.stash else config.option


def settings_of(config: pytest.Config) -> Settings:
    """Return the run's settings, read once.

    Raises:
        pytest.UsageError: a value cannot be used; names it, its source and what is allowed.
    """
    # Once: OLLAMA_HOST is set for the run, and would later be taken for the user's own.
    if SETTINGS not in config.stash:
        from pytest_ollama_warmup.config.ini import from_ini
        from pytest_ollama_warmup.config.sources import Sources, read_settings
        from pytest_ollama_warmup.errors import BadSetting

        options = _options(config)
        sources = Sources(
            options,
            config.stash.get(_ENVIRON, os.environ),
            ini=lambda option: from_ini(config, options, option),
            # Not for the runs inside of tests, which inherit the rest.
            place=os.environ.pop(PLACE, ""),
        )
        try:
            config.stash[SETTINGS] = read_settings(sources)
        except BadSetting as exc:
            raise pytest.UsageError(str(exc)) from None
    return config.stash[SETTINGS]


def directory_of(config: pytest.Config) -> RunDirectory:
    """Return the directory that all processes of the run share; the controller makes it.

    A worker on another machine, which does not see it, has one of its own.
    """
    if _DIRECTORY not in config.stash:
        from pytest_ollama_warmup.warmup.run_directory import RunDirectory

        settings = settings_of(config)
        # Who works may wait for the server, and then for a load, without a sign of progress.
        limit_s = settings.load_timeout.value + settings.wait.value
        path = _given_path(config)
        if path is None or not path.is_dir():
            directory = RunDirectory.make(limit_s)
            config.add_cleanup(directory.remove)
        else:
            directory = RunDirectory(path, limit_s)
        config.stash[_DIRECTORY] = directory
    return config.stash[_DIRECTORY]


def is_alone(config: pytest.Config) -> bool:
    """Whether this is a worker that does not see the directory of the run."""
    return is_worker(config) and directory_of(config).path != _given_path(config)


def _given_path(config: pytest.Config) -> Path | None:
    return Path(worker_input(config)[WORKER_INPUT]["directory"]) if is_worker(config) else None


def has_outcomes(config: pytest.Config) -> bool:
    """Whether any process of the run has made a model ready, or tried to."""
    return _DIRECTORY in config.stash and config.stash[_DIRECTORY].has_outcomes


def process_name(config: pytest.Config) -> str:
    """Return what records call this process: ``gw0`` and so on, ``main`` where it is no worker."""
    name: str = worker_input(config).get("workerid", "main")
    return name


def warmers_of(config: pytest.Config) -> Warmers:
    """Return what this process knows of the hosts of the run, made when first needed."""
    if WARMERS not in config.stash:
        from pytest_ollama_warmup.session.user_hooks import ask_request
        from pytest_ollama_warmup.warmup.warmer import Process, Warmers

        process = Process(process_name(config), lambda spec: ask_request(config, spec))
        warmers = Warmers(lambda: settings_of(config), directory_of(config), process)
        config.stash[WARMERS] = warmers
        config.add_cleanup(warmers.close)
    return config.stash[WARMERS]


def check_of(config: pytest.Config) -> Check:
    """Return what says whether a test may run, made when first needed."""
    if CHECK not in config.stash:
        from pytest_ollama_warmup.warmup.check import Check

        config.stash[CHECK] = Check(warmers_of(config))
    return config.stash[CHECK]


def gates_of(config: pytest.Config) -> Gates:
    """Return the gates of the run as this process sees them."""
    if GATES not in config.stash:
        from pytest_ollama_warmup.session.skipped_last_run import Gates

        config.stash[GATES] = Gates(directory_of(config), process_name(config))
    return config.stash[GATES]
