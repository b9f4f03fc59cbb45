"""The address of the server: in the environment of the run, and among its processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.config.settings import OWN_SERVER
from pytest_ollama_warmup.session.state import (
    AT_START,
    CHECK,
    SETTINGS,
    WARMERS,
    directory_of,
    has_other_address,
    is_distributing,
    is_worker,
    settings_of,
)
from pytest_ollama_warmup.text import Secret, explained, origin

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.host import Host

# What OLLAMA_HOST held before the plugin set it.
_OLLAMA_HOST: pytest.StashKey[str | None] = pytest.StashKey()
SET_LATE = "OLLAMA_HOST, set by conftest.py or a plugin"


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
    settings = settings_of(config)
    # Conftests parse OLLAMA_HOST: it stays as it is where it, or the default, names the server.
    if settings.chooses_host:
        set_ollama_host(config)
        if settings.serve.value:
            set_environment(config, OWN_SERVER, settings.host.url)
    set_exports(config)
    config.stash[AT_START] = os.environ.get("OLLAMA_HOST")


def read_address_again(config: pytest.Config) -> None:
    """Take over an OLLAMA_HOST that was set since: by load_dotenv() in a conftest, by pytest-env.

    What is given closer to the run goes before it, as ever: the command line, a server of its own.
    """
    settings, now = settings_of(config), os.environ.get("OLLAMA_HOST")
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

    spelling = config.stash.setdefault(_OLLAMA_HOST, now)
    if names(now, host, with_login=True):
        return None
    return spelling if spelling and names(spelling, host, with_login=True) else host.as_variable


def address_differs(config: pytest.Config) -> str:
    """Say that OLLAMA_HOST names another server than the run uses; empty where it does not."""
    # Asked in each test: nothing is read or imported where nothing has changed.
    if not has_other_address(config):
        return ""
    from pytest_ollama_warmup.ollama.host import names, shown_without_login

    host = settings_of(config).host
    if names(now := os.environ.get("OLLAMA_HOST"), host):
        return ""
    return explained(
        f"OLLAMA_HOST is {shown_without_login(now or 'not set')!r} in this test, and models are "
        f"prepared at {host.url} ({origin(host.source)}); set it before the session starts, or "
        "give this test a fixture ollama_host of its own",
        "address-differs",
    )


def write_host(config: pytest.Config, host: Host) -> None:
    """Make *host*, which the suite's own hook names, the server of all processes of the run."""
    content = {"url": host.url, "source": host.source}
    if host.login and is_distributing(config):
        # Workers that run by now have no other way to hear of it. The directory is the user's own,
        # and goes with the run.
        content["login"] = host.login
    directory_of(config).address.write(content)
    _adopt(config, settings_of(config).on(host))


def write_places(config: pytest.Config, urls: list[str]) -> None:
    """Give each worker, by its number, one of several servers."""
    directory_of(config).address.write({"places": urls})


def places_of(config: pytest.Config, workers: int) -> list[str]:
    """Return the server of each worker: what was written, else one after the other in turn."""
    if written := directory_of(config).address.read({}).get("places"):
        return list(written)
    pool = settings_of(config).pool
    return [pool[number % len(pool)].url for number in range(workers)]


def adopt_host(config: pytest.Config) -> None:
    """Take over what the controller wrote by ``write_host`` or ``write_places``, if anything."""
    written, settings = directory_of(config).address.read({}), settings_of(config)
    if "url" in written:
        host = read_host(written["url"], written["source"])
        _adopt(config, settings.on(host._replace(login=Secret(written.get("login", "")))))
    elif "places" in written and settings.number is not None:
        _adopt(config, settings.moved(written["places"][settings.number]))


def _adopt(config: pytest.Config, settings: Settings) -> None:
    if settings == settings_of(config):
        return
    config.stash[SETTINGS] = settings
    if is_worker(config) and WARMERS in config.stash:
        # Those of the other server are made when they are needed.
        config.stash[WARMERS].close()
        del config.stash[WARMERS]
        if CHECK in config.stash:
            del config.stash[CHECK]
    set_ollama_host(config)
    set_exports(config)
