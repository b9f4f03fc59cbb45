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
from pytest_ollama_warmup.session.leader import Leader
from pytest_ollama_warmup.warmup.plan import make_plan
from pytest_ollama_warmup.warmup.run_directory import make_run_folder, remove

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.record import Record


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
    """Pull the models of *specs* that are missing, load all of them, and return what happened.

    *specs* are as for ``--ollama-preload``: ``"llama3.2:1b,num_ctx=8192 embed"``, or a list. The
    other arguments are the options of the same names: ``pull="always"``, ``keep_alive=-1``,
    ``wait=120`` (seconds), ``alias="chat=llama3.2:1b"``, ``header=["X-API-Key: $GATEWAY_KEY"]``.

    A model that cannot be made ready does not raise: ``preload(...).failed`` lists those, each with
    its ``model`` and ``error``; ``outcomes`` has all of them. Nothing is printed.

    Raises:
        BadSetting: a value cannot be used; names it and what is allowed. Also a ValueError.
    """
    if not isinstance(specs, Iterable):
        raise TypeError(f"expected model names as a string or a list of strings, got {specs!r}")
    settings = _read(
        preload=_listed(specs),
        host=host,
        alias=None if alias is None else _listed(alias),
        header=None if header is None else _listed(header),
        pull=pull,
        warm=warm,
        keep_alive=keep_alive,
        wait=wait,
        stall=stall,
        load_timeout=load_timeout,
    )
    if text := readable_on_the_way([settings.host], settings.headers.value):
        warnings.warn(text, stacklevel=2)
    return bring_listed(settings, Screen(lambda line, **colours: None))


def _read(**given: object) -> Settings:
    names = {"preload": "specs"}
    sources = Sources(
        SimpleNamespace(**{f"{PREFIX}{name}": value for name, value in given.items()}),
        flag=lambda option: f"preload({names.get(option.name, option.name)}=)",
        patient=True,
    )
    settings = read_settings(sources)
    if settings.problem is not None:
        raise settings.problem
    return settings


def _listed(texts: str | Iterable[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


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
