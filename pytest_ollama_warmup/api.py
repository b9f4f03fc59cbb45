"""Bring models without pytest: for scripts, and for the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pytest_ollama_warmup.config.options import OPTIONS
from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.ollama.requests import readable_on_the_way
from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.session.leader import Leader
from pytest_ollama_warmup.warmup.plan import make_plan
from pytest_ollama_warmup.warmup.run_directory import make_run_folder, remove

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.record import Record


def preload(specs: str | Iterable[str], *, host: str | None = None, **settings: object) -> Record:
    """Pull what is missing of *specs* and load all of it; return what happened.

    *specs* are written as for ``--ollama-preload``: ``"llama3.2:1b,num_ctx=8192 embed"``. *host* is
    the address of the server, else OLLAMA_HOST says it. *settings* are options without their
    ``--ollama-``: ``pull="always"``, ``warm="load"``, ``keep_alive="-1"``, ``wait=120`` (seconds),
    ``alias=["chat=llama3.2:1b"]``, ``header=["X-API-Key: $GATEWAY_KEY"]``, ``stall``,
    ``load_timeout``.

    A model that cannot be made ready does not raise: ``preload(...).failed`` lists those, each with
    its ``model`` and ``error``; ``outcomes`` has all of them. Nothing is printed.

    Raises:
        BadSetting: also a ValueError; a value cannot be used, names it and what is allowed.
        TypeError: there is no such setting.
    """
    if not isinstance(specs, Iterable):
        raise TypeError(f"expected model names as a string or a list of strings, got {specs!r}")
    rows = {option.name: option for option in OPTIONS if not option.pytest_only}
    if unknown := [name for name in settings if name not in rows]:
        known = ", ".join(name for name in rows if name != "host")
        raise TypeError(f"preload() has no setting {unknown[0]!r}; there are host, {known}")
    given = {rows[name].dest: value for name, value in settings.items() if value is not None}
    for name in ("alias", "header"):
        if isinstance(given.get(rows[name].dest), str):
            given[rows[name].dest] = [given[rows[name].dest]]
    if host is not None:
        given[rows["host"].dest] = host
    options = SimpleNamespace(
        **given, ollama_warmup_preload=[specs] if isinstance(specs, str) else list(specs)
    )
    names = {"preload": "specs"}
    sources = Sources(
        options,
        flag=lambda option: f"preload({names.get(option.name, option.name)}=)",
        patient=True,
    )
    read = read_settings(sources)
    if read.problem is not None:
        raise read.problem
    if text := readable_on_the_way([read.host], read.headers.value):
        warnings.warn(text, stacklevel=2)
    return bring_listed(read, Screen(lambda line, **colours: None))


def bring_listed(settings: Settings, screen: Screen) -> Record:
    """Bring the listed models and return what happened, also where some could not be had.

    Ctrl-C says what it interrupts, makes the server end that, and goes on as KeyboardInterrupt.
    """
    targets = make_plan(settings.listed, (), up_front=True).targets
    folder = make_run_folder()
    leader = Leader(settings, folder, screen)
    try:
        leader.begin(targets.values())
        leader.wait("done")
    except KeyboardInterrupt:
        leader.say_interrupted()
        raise
    finally:
        leader.close()
        remove(folder)
    # In the order in which they are listed, not in which they came.
    leader.record.models = {key: leader.record.models[key] for key in targets}
    return leader.record
