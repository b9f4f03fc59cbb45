"""What a suite's own hooks answer, checked: its server, and its warm-up requests."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.errors import BadSetting
from pytest_ollama_warmup.text import clean, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.host import Host

HOST_HOOK = "pytest_ollama_host"
REQUEST_HOOK = "pytest_ollama_warmup_request"
_KNOWN = pytest.StashKey[frozenset[str]]()


class Say(Protocol):
    """Says a line once."""

    def __call__(self, text: str) -> None:
        """Say *text*."""


def host_hook_files(config: pytest.Config) -> list[str]:
    """Return the files that implement ``pytest_ollama_host`` and are loaded by now."""
    hooks = config.pluginmanager.hook.pytest_ollama_host.get_hookimpls()
    return sorted(str(hook.function.__code__.co_filename) for hook in hooks)


def note_host_hooks(config: pytest.Config) -> None:
    """Remember which files have the hook before collection."""
    config.stash[_KNOWN] = frozenset(host_hook_files(config))


def refuse_late_host_hooks(config: pytest.Config, files: Iterable[str]) -> None:
    """Refuse the hook in *files* that were loaded too late to be asked in every kind of run.

    Raises:
        pytest.UsageError: names the file.
    """
    late = [file for file in files if file not in config.stash.get(_KNOWN, frozenset())]
    if late:
        raise pytest.UsageError(
            explained(
                f"the hook {HOST_HOOK} in {_shown(config, late[0])} is loaded too late: only "
                "during collection, and with pytest-xdist only in the workers. Move it to the "
                f"conftest.py of the root directory ({config.rootpath}).",
                "hook-failed",
            )
        )


def ask_host(config: pytest.Config, settings: Settings, say: Say) -> Host | None:
    """Return the server that a hook of the suite names; None where none does.

    Raises:
        pytest.UsageError: the hook failed, or what it returned is no address.
    """
    files = host_hook_files(config)
    if not files or settings.given_host.given_by == "option" or settings.serve.value:
        return None
    where = f"{HOST_HOOK} in {_shown(config, files[-1])}"
    # It may start a container, which takes its time.
    say(f"asking {where} for a server")
    value = _called(config, where, lambda: config.hook.pytest_ollama_host(config=config))
    if value is None:
        return None
    if not isinstance(value, str):
        raise pytest.UsageError(
            explained(
                f"{where} returned {clean(repr(value), 80)}; "
                "expected a string such as 'http://host:11434'",
                "hook-failed",
            )
        )
    try:
        return read_host(value, where)
    except BadSetting as exc:
        raise pytest.UsageError(str(exc)) from None


def ask_request(config: pytest.Config, spec: ModelSpec) -> dict[str, Any] | None:
    """Return the suite's own warm-up request for *spec*; None where it has none.

    Raises:
        pytest.UsageError: the hook failed, or what it returned is no request.
    """
    if not config.hook.pytest_ollama_warmup_request.get_hookimpls():
        return None
    body = _called(
        config,
        REQUEST_HOOK,
        lambda: config.hook.pytest_ollama_warmup_request(config=config, spec=spec),
    )
    if body is None:
        return None
    problem = _problem_of(body)
    if problem:
        raise pytest.UsageError(
            explained(f"{REQUEST_HOOK} for {spec.name}: {problem}", "hook-failed")
        )
    return dict(body)


def _problem_of(body: object) -> str:
    if not isinstance(body, dict):
        return f"expected a dict, got {clean(repr(body), 80)}"
    if not any(body.get(key) for key in ("messages", "input", "prompt")):
        return "expected one of messages, input and prompt, not empty"
    options = body.get("options", {})
    if not isinstance(options, dict):
        return f"options is a dict, not {clean(repr(options), 80)}"
    if options.get("num_predict", 1) == 0:
        # The server takes it for no limit at all.
        return "num_predict 0 generates without end; 1 is the least"
    try:
        json.dumps(body)
    except (TypeError, ValueError) as exc:
        return f"it cannot be written as JSON ({clean(exc, 80)})"
    return ""


def _called(config: pytest.Config, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except pytest.exit.Exception:
        raise
    # What skips or fails a test, as importorskip() does, is no Exception.
    except (Exception, pytest.skip.Exception, pytest.fail.Exception) as exc:
        # The last line of theirs: below it stand the libraries that they call.
        root = str(config.rootpath)
        frames = traceback.extract_tb(exc.__traceback__)
        own = [frame for frame in frames if frame.filename.startswith(root)]
        theirs = [frame for frame in own if "site-packages" not in frame.filename] or frames
        at = f"{_shown(config, theirs[-1].filename)}:{theirs[-1].lineno}"
        words = f"{type(exc).__name__}: {clean(exc)}"
        raise pytest.UsageError(
            explained(f"{what} failed at {at}: {words}", "hook-failed")
        ) from exc


def _shown(config: pytest.Config, file: str) -> str:
    path = Path(file)
    inside = path.is_relative_to(config.rootpath)
    return str(path.relative_to(config.rootpath)) if inside else str(path)
