"""The lines for pytest's header, and a slip that users make with the list of models."""

from __future__ import annotations

import os

import pytest

from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.report.messages import header, hints
from pytest_ollama_warmup.report.progress import INDENT
from pytest_ollama_warmup.session.state import settings_of
from pytest_ollama_warmup.session.terminal import width_of
from pytest_ollama_warmup.text import clean, explained, wrapped


def header_lines(config: pytest.Config, *, looking: bool) -> list[str]:
    """Return the lines for pytest's header; *looking* is whether no test runs."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    width = width_of(config, terminal) if terminal is not None else 0
    end = "; not preloading: no tests will run" if looking else ""
    settings = settings_of(config)
    first = header(settings, verbose=config.get_verbosity() > 0, width=width)
    lines = [first + end, *([] if looking else hints(settings))]
    return [line for text in lines for line in wrapped(f"ollama: {text}", width, INDENT)]


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
            explained(
                f"file or directory not found: {clean(missing[0])}\n"
                "looks like a model: --ollama-preload takes one value, quote the list: "
                f'--ollama-preload "{clean(quoted)}".',
                "models-as-paths",
            )
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
