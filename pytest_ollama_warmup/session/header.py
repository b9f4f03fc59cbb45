"""What a run says first: where the server is, what is listed, and slips that users make there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.host import again, names, shown_without_login
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.report.progress import INDENT
from pytest_ollama_warmup.session.state import settings_of
from pytest_ollama_warmup.session.terminal import width_of
from pytest_ollama_warmup.text import clean, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.config.settings import Settings


def header(config: pytest.Config, width: int = 0) -> str:
    """Say where the server is and what is listed, each with its source.

    Of many models and hosts as many are named as fit on two lines of *width*, 0 for no limit. With
    ``-v`` all are, and what follows when a model is not available.
    """
    settings = settings_of(config)
    hosts = [host.url for host in settings.pool]
    models = [str(spec) for spec in settings.listed.specs]
    if config.get_verbosity() > 0:
        return f"{_header(settings, hosts, models)}, missing models: {_policy(settings)}"
    shown, urls = len(models), len(hosts)
    while True:
        text = _header(settings, _some(hosts, urls), _some(models, shown))
        if len(wrapped(f"ollama: {text}", width, INDENT)) <= 2 or shown <= 1 >= urls:
            return text
        shown, urls = (shown - 1, urls) if shown > 1 else (shown, urls - 1)


def header_lines(config: pytest.Config, *, looking: bool) -> list[str]:
    """Return the lines for pytest's header; *looking* is whether no test runs."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    width = width_of(config, terminal) if terminal is not None else 0
    end = "; not preloading: no tests will run" if looking else ""
    lines = [header(config, width) + end, *([] if looking else hints(config))]
    return [line for text in lines for line in wrapped(f"ollama: {text}", width, INDENT)]


def _header(settings: Settings, hosts: list[str], models: list[str]) -> str:
    listed = settings.listed
    what = f", preload: {', '.join(models)} ({listed.source})" if models else ""
    return f"{', '.join(hosts)} ({settings.host.source}){what}"


def _some(names: list[str], number: int) -> list[str]:
    left_out = len(names) - number
    return (
        names
        if left_out <= 0
        else [*names[: number - 1], f"{names[number - 1]} and {left_out} more"]
    )


def _policy(settings: Settings) -> str:
    listed, on_unavailable = settings.listed, settings.on_unavailable
    if on_unavailable.value != "auto":
        return f"{on_unavailable.value} (from {on_unavailable.source})"
    what = f"{'fail' if settings.ci else 'skip'} ({settings.ci_words})"
    ends = listed.given_by == "option" and listed.specs
    return f"{what}, but listed ones end the run" if ends else what


def hints(config: pytest.Config) -> Iterator[str]:
    """Yield what the user may have meant otherwise."""
    settings = settings_of(config)
    for host in again(settings.hosts):
        yield f"{host.url} is given more than once (from {host.source}): it is one host."
    for host in settings.hosts:
        if host.dropped:
            yield (
                f"{host.dropped} at the end of the address (from {host.source}) is a path of the "
                f"API: {host.url} is used."
            )
    models = os.environ.get("OLLAMA_MODELS", "")
    if not settings.listed.specs and ":" in models and not Path(models).is_absolute():
        yield (
            "OLLAMA_MODELS looks like a list of models, but is the server's storage directory; "
            "list them in OLLAMA_PRELOAD_MODELS."
        )
    elsewhere = os.environ.get("OLLAMA_BASE_URL", "").strip()
    if elsewhere and not any(names(elsewhere, host) for host in settings.pool):
        shown = shown_without_login(elsewhere)
        yield (
            f"OLLAMA_BASE_URL points elsewhere ({shown}), to another server. "
            "--ollama-export OLLAMA_BASE_URL sets it to this one."
        )


def refuse_models_as_paths(config: pytest.Config) -> None:
    """Catch ``--ollama-preload a b``, where pytest takes the second model for a path.

    Raises:
        pytest.UsageError: names the path, and how to write the list.
    """
    listed = settings_of(config).listed
    if listed.given_by != "option" or config.getoption("pyargs", False):
        return
    here = config.invocation_params.dir
    missing = [path for path in config.args if not (here / path.split("::")[0]).exists()]
    models = [path for path in missing if _looks_like_model(path)]
    if models:
        quoted = " ".join([*(str(spec) for spec in listed.specs), *models])
        raise pytest.UsageError(
            f"file or directory not found: {clean(missing[0])}\n"
            "looks like a model: --ollama-preload takes one value, quote the list: "
            f'--ollama-preload "{clean(quoted)}".'
        )


def _looks_like_model(text: str) -> bool:
    if text.endswith(".py") or "::" in text or text.startswith((".", os.sep)):
        return False
    if "/" in text and ":" not in text:
        return False
    try:
        ModelName.parse(text)
    except ValueError:
        return False
    return True
