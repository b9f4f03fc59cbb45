"""Bring models without pytest: for scripts, and for the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import SimpleNamespace

from pytest_ollama_warmup.config.options import OPTIONS
from pytest_ollama_warmup.config.settings import Settings, Sources
from pytest_ollama_warmup.ollama.requests import readable_on_the_way
from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.warmup.plan import make_plan
from pytest_ollama_warmup.warmup.preloader import Preloader, Threads
from pytest_ollama_warmup.warmup.record import Record
from pytest_ollama_warmup.warmup.run_directory import RunDirectory
from pytest_ollama_warmup.warmup.warmer import Process, Warmers


def preload(specs: str | Iterable[str], *, host: str | None = None, **settings: object) -> Record:
    """Pull the models that are missing, load all of them, and return what happened.

    A model that can't be made ready is no exception: the record's ``failed`` lists it. Nothing is
    printed.

    Args:
        specs: Models, written as for ``--ollama-preload``: ``"llama3.2:1b,num_ctx=8192 embed"``, or
            a list of such texts.
        host: Address of the server. Default: ``OLLAMA_HOST``, otherwise ``http://127.0.0.1:11434``.
        settings: Options without ``--ollama-``: ``pull="always"``, ``warm="load"``,
            ``keep_alive="-1"``, ``wait=120`` (seconds), ``alias=["chat=llama3.2:1b"]``,
            ``header=["X-API-Key: $GATEWAY_KEY"]``, ``stall``, ``load_timeout``.

    Raises:
        BadSetting: A value can't be used. The message names it and what is allowed. Also a
            ValueError.
        TypeError: There is no such setting.
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
    read = Settings.read(sources)
    if read.problem is not None:
        raise read.problem
    if text := readable_on_the_way([read.host], read.headers.value):
        warnings.warn(text, stacklevel=2)
    return bring_listed(read, Screen(lambda line, **colours: None))


def bring_listed(settings: Settings, screen: Screen) -> Record:
    """Bring the listed models and return what happened, also where some could not be had.

    Ctrl-C says what it interrupts, makes the server end that, and goes on as KeyboardInterrupt.
    """
    plan, record = make_plan(settings.listed, (), up_front=True), Record()
    host = settings.host.url
    targets = [target._replace(host=host) for target in plan.targets.values()]
    directory = RunDirectory.make(settings.load_timeout.value + settings.wait.value)
    process = Process(
        say_waiting=lambda text: screen.say_once(text, least=-1), every_s=lambda: screen.every_s
    )
    warmers = Warmers(lambda: settings, directory, process)
    warmer = warmers.own
    preloader = Preloader(Threads(lambda target: warmer, in_turns=False), record)
    screen.where = host.partition("://")[2]
    try:
        record.server = warmer.server()
        if record.server.ready:
            preloader.start(targets)
            screen.follow(preloader.events("done"))
        else:
            for target in targets:
                record.add(warmer.failed_like(record.server, target), target.id)
    except KeyboardInterrupt:
        screen.say_interrupted(settings.addresses)
        raise
    finally:
        warmers.close()
        directory.remove()
    # In the order in which they are listed, not in which they came.
    record.models = {target.id: record.models[target.id] for target in targets}
    return record
