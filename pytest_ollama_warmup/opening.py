"""What a run says first: where the server is, what is listed, and slips that users make there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.host import again, names, shown_without_login
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.roles import settings_of
from pytest_ollama_warmup.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator


def header(config: pytest.Config) -> str:
    """Say where the server is, what is listed, and what missing models do, each with its source."""
    settings = settings_of(config)
    listed, on_unavailable = settings.listed, settings.on_unavailable
    if on_unavailable.value == "auto":
        what = f"{'fail' if settings.ci else 'skip'} ({settings.ci_words})"
        if listed.given_by == "option" and listed.specs:
            what += ", but listed ones end the run"
    else:
        what = f"{on_unavailable.value} (from {on_unavailable.source})"
    return f"{settings.title}, missing models: {what}"


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
    if elsewhere and not any(names(elsewhere, one) for one in settings.pool or (settings.host,)):
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
    missing = [one for one in config.args if not (here / one.split("::")[0]).exists()]
    models = [one for one in missing if _looks_like_model(one)]
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
