"""Pull and load models without pytest: for scripts, and for the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.config.options import PREFIX
from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.ollama.requests import readable_on_the_way
from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.warmup.plan import make_plan
from pytest_ollama_warmup.warmup.preloader import Preloader, Threads
from pytest_ollama_warmup.warmup.record import Record
from pytest_ollama_warmup.warmup.run_directory import RunDirectory
from pytest_ollama_warmup.warmup.warmer import Process, Warmers

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings


def preload(
    specs: str | Iterable[str],
    *,
    host: str | None = None,
    alias: str | Iterable[str] | None = None,
    header: str | Iterable[str] | None = None,
    pull: Literal["auto", "missing", "always", "never"] | None = None,
    warm: Literal["auto", "prompt", "load", "off"] | None = None,
    keep_alive: str | float | None = None,
    wait: str | float | None = None,
    stall: str | float | None = None,
    load_timeout: str | float | None = None,
) -> Record:
    """Pull the models that are missing, load all of them, and return what happened.

    A model that can't be made ready is no exception: the record's ``failed`` lists it. Nothing is
    printed. What you leave out has the default of the option of the same name.

    Args:
        specs: Models, written as for ``--ollama-preload``: ``"llama3.2:1b,num_ctx=8192 embed"``, or
            a list of such texts.
        host: Address of the server. Default: ``OLLAMA_HOST``, otherwise ``http://127.0.0.1:11434``.
        alias: Your own names for models: ``"chat=llama3.2:1b"``, or a list.
        header: Headers of each request: ``"X-API-Key: $GATEWAY_KEY"``, or a list.
        pull: Which models to pull. ``auto`` means those that are missing.
        warm: How to warm up the models; ``off`` only pulls them.
        keep_alive: How long models stay loaded: seconds, ``"30m"``, or -1 for no limit.
        wait: How long to wait for the server to answer: seconds, or ``"2m"``.
        stall: How long a pull may receive no data before it is resumed.
        load_timeout: How long a load may take.

    Raises:
        BadSetting: A value can't be used. The message names it and what is allowed. Also a
            ValueError.
    """
    # All parameters by name, and nothing else yet.
    settings = _read(**locals())
    if text := readable_on_the_way([settings.host], settings.headers.value):
        warnings.warn(text, stacklevel=2)
    return preload_listed(settings, Screen(lambda line, **colours: None))


def _read(specs: object, **arguments: object) -> Settings:
    if not isinstance(specs, Iterable):
        raise TypeError(f"expected model names as a string or a list of strings, got {specs!r}")
    arguments |= {"preload": _listed(specs)}
    for name in ("alias", "header"):
        if isinstance(texts := arguments[name], Iterable):
            arguments[name] = _listed(texts)
    names = {"preload": "specs"}
    sources = Sources(
        SimpleNamespace(**{f"{PREFIX}{name}": value for name, value in arguments.items()}),
        flag=lambda option: f"preload({names.get(option.name, option.name)}=)",
        patient=True,
    )
    settings = read_settings(sources)
    if settings.problem is not None:
        raise settings.problem
    return settings


def _listed(texts: Iterable[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def preload_listed(settings: Settings, screen: Screen) -> Record:
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
        screen.say_interrupted(settings.addresses, preloader.pending())
        raise
    finally:
        warmers.close()
        directory.remove()
    # In the order in which they are listed, not in which they came.
    record.models = {target.id: record.models[target.id] for target in targets}
    return record
