"""Which process of a run this is, what it is asked for, and where it keeps its state.

Part of every pytest run: what a run needs that is asked for something is imported in functions.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.options import OPTIONS, read_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.process import ManagedServer
    from pytest_ollama_warmup.session.run import Run

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
RUN = pytest.StashKey["Run"]()
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
# What OLLAMA_HOST held before the plugin set it.
_OLLAMA_HOST = pytest.StashKey["str | None"]()
_FOLDER = pytest.StashKey[Path]()
WORKER_INPUT = "ollama_warmup"
SET_LATE = "OLLAMA_HOST, set by conftest.py or a plugin"
# In the environment of a worker: the server that the run chose for it, see ``Place``.
PLACE = "PYTEST_OLLAMA_WARMUP_PLACE"
_HOST_FILE = "host.json"

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
    found = [host for host in hosts if host.login or extra]
    if not found:
        return ""
    from pytest_ollama_warmup.ollama.requests import readable_on_the_way
    from pytest_ollama_warmup.warmup.locks import file_name

    new = []
    for host in found:
        # The processes of a run see by it what one of them has said.
        with suppress(FileExistsError):
            (folder_of(config) / f"warned-{file_name(host.url)}").touch(exist_ok=False)
            new.append(host)
    text = readable_on_the_way(new, extra)
    return "" if not text or warn(config, text) else text


def worker_input(config: pytest.Config) -> dict[str, Any]:
    """Return what the controller of pytest-xdist tells this worker; empty in other processes."""
    found: dict[str, Any] = getattr(config, "workerinput", {})
    return found


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
    return sum(int(found[1]) if found else 1 for found in numbers)


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
    note_address(config)
    return is_asked(config)


def is_asked(config: pytest.Config) -> bool:
    """Whether an option, a key of a file or the environment asks the plugin for something.

    OLLAMA_HOST does not: it says where the server is of those who need one.
    """
    if _ASKED not in config.stash:
        listed, options = os.environ.get("OLLAMA_PRELOAD_MODELS"), _options(config)
        config.stash[_ASKED] = bool(
            (listed and listed.strip())
            or PLACE in os.environ
            or any(getattr(options, one.dest, None) is not None for one in OPTIONS)
            or any(_is_in_file(config, one.ini) for one in OPTIONS)
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

        given = _options(config)
        sources = Sources(
            given,
            config.stash.get(_ENVIRON, os.environ),
            ini=lambda option: from_ini(config, given, option),
            # Not for the runs inside of tests, which inherit the rest.
            place=os.environ.pop(PLACE, ""),
        )
        try:
            config.stash[SETTINGS] = read_settings(sources)
        except BadSetting as exc:
            raise pytest.UsageError(str(exc)) from None
    return config.stash[SETTINGS]


def set_environment(config: pytest.Config, name: str, value: str) -> None:
    """Set an environment variable for the run; what was there comes back at its end."""
    before = os.environ.get(name)

    def restore() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    os.environ[name] = value
    config.add_cleanup(restore)


def set_ollama_host(config: pytest.Config) -> None:
    """Set OLLAMA_HOST to the server in use, for clients that tests create, unless it names it."""
    value = ollama_host_for(config, settings_of(config).host, os.environ.get("OLLAMA_HOST"))
    if value is not None:
        set_environment(config, "OLLAMA_HOST", value)


def set_exports(config: pytest.Config) -> None:
    """Set the variables of ``--ollama-export`` to the server in use."""
    settings = settings_of(config)
    for export in settings.exports.value:
        set_environment(config, export.name, export.value(settings.host))


def set_up_environment(config: pytest.Config) -> None:
    """Set OLLAMA_HOST and what else is to hold the server's address, before conftests read it."""
    from pytest_ollama_warmup.config.settings import OWN_SERVER

    settings = settings_of(config)
    # Conftests parse OLLAMA_HOST: it stays as it is where it, or the default, names the server.
    if settings.chooses_host:
        set_ollama_host(config)
        if settings.serve.value:
            set_environment(config, OWN_SERVER, settings.host.url)
    set_exports(config)
    note_address(config)


def note_address(config: pytest.Config) -> None:
    """Remember OLLAMA_HOST, so that it is seen when a conftest or a plugin sets it later."""
    config.stash[AT_START] = os.environ.get("OLLAMA_HOST")


def read_address_again(config: pytest.Config) -> None:
    """Take over an OLLAMA_HOST that was set since: by load_dotenv() in a conftest, by pytest-env.

    What is given closer to the run goes before it, as ever: the command line, a server of its own.
    """
    now = os.environ.get("OLLAMA_HOST")
    if AT_START not in config.stash or now == config.stash[AT_START]:
        return
    settings = settings_of(config)
    if settings.off:
        return
    if settings.given_host.given_by == "option" or settings.serve.value or settings.served:
        return
    if settings.number is None and (now or "").strip():
        config.stash[SETTINGS] = settings = settings.at_address(str(now), SET_LATE)
        if settings.problem is None:
            set_exports(config)


def ollama_host_for(config: pytest.Config, host: Host, now: str | None) -> str | None:
    """Return the value that OLLAMA_HOST needs for *host*; None if *now* names that already.

    Conftests parse the variable, so the user's own spelling goes before ours.
    """
    from pytest_ollama_warmup.ollama.host import names

    found = config.stash.setdefault(_OLLAMA_HOST, now)
    if names(now, host, with_login=True):
        return None
    return found if found and names(found, host, with_login=True) else host.as_variable


def folder_of(config: pytest.Config) -> Path:
    """Return the directory that all processes of the run share; the controller makes it.

    A worker on another machine, which does not see it, has one of its own.
    """
    if _FOLDER not in config.stash:
        given = _given_folder(config)
        if given is None or not given.is_dir():
            from pytest_ollama_warmup.warmup.run_directory import make_run_folder, remove

            folder = make_run_folder()
            config.add_cleanup(lambda: remove(folder))
        else:
            folder = given
        config.stash[_FOLDER] = folder
    return config.stash[_FOLDER]


def is_alone(config: pytest.Config) -> bool:
    """Whether this is a worker that does not see the directory of the run."""
    return is_worker(config) and folder_of(config) != _given_folder(config)


def _given_folder(config: pytest.Config) -> Path | None:
    return Path(worker_input(config)[WORKER_INPUT]["folder"]) if is_worker(config) else None


def has_outcomes(config: pytest.Config) -> bool:
    """Whether any process of the run has brought a model, or tried to."""
    return _FOLDER in config.stash and any(config.stash[_FOLDER].rglob("outcome-*.json"))


def write_host(config: pytest.Config, host: Host) -> None:
    """Make *host*, which the suite's own hook names, the server of all processes of the run."""
    path = folder_of(config) / _HOST_FILE
    content = {"url": host.url, "source": host.source}
    if host.login and is_distributing(config):
        # Workers that run by now have no other way to hear of it. The directory is the user's own,
        # and goes with the run.
        content["login"] = host.login
    path.write_text(json.dumps(content), encoding="utf-8")
    _adopt(config, settings_of(config).on(host))


def write_places(config: pytest.Config, urls: list[str]) -> None:
    """Give each worker, by its number, one of several servers."""
    path = folder_of(config) / _HOST_FILE
    path.write_text(json.dumps({"places": urls}), encoding="utf-8")


def places_of(config: pytest.Config, workers: int) -> list[str]:
    """Return the server of each worker: what was written, else one after the other in turn."""
    if written := _written(config).get("places"):
        return list(written)
    settings = settings_of(config)
    pool = settings.pool or (settings.host,)
    return [pool[number % len(pool)].url for number in range(workers)]


def adopt_host(config: pytest.Config) -> None:
    """Take over what the controller wrote by ``write_host`` or ``write_places``, if anything."""
    written, settings = _written(config), settings_of(config)
    if "url" in written:
        from pytest_ollama_warmup.text import Secret

        host = read_host(written["url"], written["source"])
        _adopt(config, settings.on(host._replace(login=Secret(written.get("login", "")))))
    elif "places" in written and settings.number is not None:
        _adopt(config, settings.moved(written["places"][settings.number]))


def _written(config: pytest.Config) -> dict[str, Any]:
    path = folder_of(config) / _HOST_FILE
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _adopt(config: pytest.Config, settings: Settings) -> None:
    if settings == settings_of(config):
        return
    config.stash[SETTINGS] = settings
    if is_worker(config):
        # One on the records of the other server is made when it is needed.
        if RUN in config.stash:
            config.stash[RUN].close()
            del config.stash[RUN]
    elif RUN in config.stash:
        config.stash[RUN].settings = settings
    set_ollama_host(config)
    set_exports(config)


def run_of(config: pytest.Config) -> Run:
    """Return this process's view of the run's models, made when first needed."""
    if RUN not in config.stash:
        from pytest_ollama_warmup.session.run import Run, folder_at
        from pytest_ollama_warmup.session.user_hooks import ask_request

        by: str = worker_input(config).get("workerid", "main")
        settings, root = settings_of(config), folder_of(config)
        folder = folder_at(root, settings.host.url) if settings.pool else root
        run = Run(settings, folder, by, lambda spec: ask_request(config, spec), root)
        config.stash[RUN] = run
        config.add_cleanup(run.close)
    return config.stash[RUN]
