"""The commands of ``ollama-warmup``, called with settings that have been read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.api import preload_listed
from pytest_ollama_warmup.cli.status import Row, keep_alive, status_lines, unload_lines
from pytest_ollama_warmup.errors import ApiError, WarmupError
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.names import ModelName, is_cloud, meant_by
from pytest_ollama_warmup.ollama.requests import readable_on_the_way
from pytest_ollama_warmup.ollama.responses import find, loaded_as
from pytest_ollama_warmup.report.progress import PROGRESS_LINE_EVERY_S, Screen
from pytest_ollama_warmup.report.summary import can_write_signs, summary_lines
from pytest_ollama_warmup.text import count, origin
from pytest_ollama_warmup.warmup.record import SCHEMA
from pytest_ollama_warmup.warmup.warmer import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TextIO

    from pytest_ollama_warmup.cli.status import State
    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.responses import LoadedModel, LocalModel

# A model that answers unloads when its requests are over, and they may take minutes.
UNLOAD_LIMIT_S = 5.0


def make_ready(command: str, settings: Settings, *, quiet: int, as_json: bool) -> bool:
    """Pull and, for ``preload``, load the listed models; return whether all are ready."""
    out = sys.stderr if as_json else sys.stdout
    screen = _screen(out, quiet)
    for line in _head(settings, command):
        screen.say(line)
    _warn_unencrypted(settings)
    record = preload_listed(settings, screen)
    for error in dict.fromkeys(outcome.error for outcome in record.failed):
        screen.say(error, least=-2, red=True)
    if as_json:
        print(json.dumps(record.to_dict(), indent=2))
    else:
        plain = not can_write_signs(out)
        for line in summary_lines(record, only_failed=quiet > 1, plain=plain):
            print(line)
    return not record.failed


def status(settings: Settings, *, as_json: bool) -> bool:
    """Show the loaded models and the listed ones; return whether all listed ones are loaded."""
    with _asking(settings) as client:
        rows = _rows(client, settings.listed.specs)
    missing = [row for row in rows if row.missing]
    if as_json:
        print_json(settings, [{**asdict(row), "missing": row.missing} for row in rows])
        return not missing
    _print_table(settings, "status", status_lines, rows)
    if not rows:
        print("ollama: no model is loaded")
    for row in missing:
        if row.did_you_mean:
            print(f"ollama: {row.model} is not local. Did you mean {row.did_you_mean}?")
    if missing:
        specs = " ".join(row.to_load for row in missing)
        wanted = sum(1 for row in rows if row.wanted)
        print(f"ollama: {len(missing)} of {count(wanted, 'model')} not loaded. To load:")
        print(f"  ollama-warmup preload {specs}")
    return not missing


def unload(settings: Settings, *, everything: bool, as_json: bool) -> bool:
    """Unload the listed models, or all; return whether none of them is loaded any more.

    A model that the server does not know fails.
    """
    with _asking(settings) as client:
        loaded_models, local_models = client.loaded_models(), client.local_models()
        specs = () if everything else settings.listed.specs
        found: dict[str, LoadedModel | State] = {
            model.name: model for model in loaded_models if everything
        }
        found |= {
            _full(spec): _to_unload(spec, client, loaded_models, local_models) for spec in specs
        }
        names = {one.name for one in found.values() if not isinstance(one, str)}
        for name in names:
            client.unload(name)
        left = in_memory_after(client, names, UNLOAD_LIMIT_S)
    candidates = {model.name for model in loaded_models} | {model.name for model in local_models}
    models: list[dict[str, Any]] = []
    for name, one in found.items():
        unknown, state = one == "not pulled", "unloaded"
        if isinstance(one, str):
            state = "not found" if unknown else one
        elif one.name in left:
            state = "in use"
        models.append(
            {
                "model": name,
                "state": state,
                "size": 0 if isinstance(one, str) else one.size,
                "did_you_mean": meant_by(name, sorted(candidates)) if unknown else "",
            }
        )
    if as_json:
        print_json(settings, models)
    else:
        _print_table(settings, "unload", unload_lines, models)
        if not models:
            print("ollama: no model is loaded")
    return not left and "not pulled" not in found.values()


def cache_key(settings: Settings, *, digests: bool) -> None:
    """Print a key for a cache of the listed models: made from names, and from *digests* if asked.

    Raises:
        WarmupError: the server does not have all digests.
    """
    # A pinned model is another download than the same name without a pin. Options change no
    # download, and a model in the cloud is none.
    specs = {
        f"{spec.model_key}@{spec.digest}": spec
        for spec in settings.listed.specs
        if not is_cloud(spec.name)
    }
    key = f"ollama-models-{_hash(specs)}"
    if digests:
        with _asking(settings) as client:
            local_models = client.local_models()
        matches = [(spec, find(local_models, spec.model_key)) for spec in specs.values()]
        if missing := [
            str(spec)
            for spec, model in matches
            if model is None or not spec.is_version(model.digest)
        ]:
            raise WarmupError(
                f"no digest of {', '.join(missing)}: not on {settings.host.url} "
                f"({origin(settings.host.source)}). Run 'ollama-warmup pull {' '.join(missing)}' "
                "first, or leave out --digests."
            )
        key += f"-{_hash(f'{spec.model_key}@{model.digest}' for spec, model in matches if model)}"
    print(key)


def print_json(settings: Settings, models: list[dict[str, Any]], error: str = "") -> None:
    """Print the outcome of a command as one JSON document."""
    document = {"schema": SCHEMA, "host": settings.host.url, "error": error, "models": models}
    print(json.dumps(document, indent=2))


def _warn_unencrypted(settings: Settings) -> None:
    if text := readable_on_the_way([settings.host], settings.headers.value):
        print(f"ollama: warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def _asking(settings: Settings) -> Iterator[Client]:
    """Give a client of the server once it answers.

    Raises:
        WarmupError: the server does not answer, or answers with an error.
    """
    host, said = settings.host, ""

    def on_wait(cause: str, waited_s: float) -> None:
        nonlocal said
        text = waiting(settings, cause, waited_s, PROGRESS_LINE_EVERY_S)
        if text and text != said:
            said = text
            # stdout may be read by a program.
            print(f"ollama: {text}", file=sys.stderr, flush=True)

    _warn_unencrypted(settings)
    client = Client(host, settings.api_key, settings.headers.value)
    try:
        client.wait_until_ready(settings.wait.value, on_wait, refused_s=settings.refused_s)
        yield client
    except ApiError as exc:
        raise WarmupError(
            f"{host.url} ({origin(host.source)}) answers with an error: {exc.message}. "
            "Its log may say why."
        ) from exc
    finally:
        client.close()


def _rows(client: Client, specs: Iterable[ModelSpec]) -> list[Row]:
    loaded_models, local_models = client.loaded_models(), client.local_models()
    rows, seen = [], set()
    for spec in specs:
        match = _find(spec, loaded_models, local_models)
        if match is None:
            state, names = _absent(client, spec, local_models), [m.name for m in local_models]
            meant = meant_by(_full(spec), names) if state == "not pulled" else ""
            row = Row(model="", state=state, did_you_mean=meant)
        else:
            seen.add(match.name)
            same_version = spec.is_version(match.digest)
            row = _loaded(match, "loaded" if same_version else "other version")
        rows.append(
            replace(
                row,
                model=_full(spec),
                wanted=str(spec),
                wanted_context=dict(spec.options).get("num_ctx"),
            )
        )
    return rows + [_loaded(model) for model in loaded_models if model.name not in seen]


def _loaded(model: LoadedModel, state: State = "loaded") -> Row:
    return Row(
        model=model.name,
        state=state,
        context_length=model.context_length,
        keep_alive_s=None if model.keep_alive_s is None else keep_alive(model.keep_alive_s),
        size=model.size,
        digest=model.digest,
    )


def _absent(client: Client, spec: ModelSpec, local_models: list[LocalModel]) -> State:
    if is_cloud(spec.name):
        return "in the cloud"
    if find(local_models, spec.model_key) is None:
        return "not pulled"
    info = client.show(spec.name)
    return "in the cloud" if info is not None and info.remote_host else "not loaded"


def _find(
    spec: ModelSpec, loaded_models: list[LoadedModel], local_models: list[LocalModel]
) -> LoadedModel | None:
    """Return the loaded model that *spec* means, which the server may list under another name."""
    local_model = find(local_models, spec.model_key)
    return loaded_as(loaded_models, spec.model_key, local_model.digest if local_model else "")


def _to_unload(
    spec: ModelSpec,
    client: Client,
    loaded_models: list[LoadedModel],
    local_models: list[LocalModel],
) -> LoadedModel | State:
    """Return the loaded model that *spec* means, also by its pin, else how things are with it."""
    match = _find(spec, loaded_models, local_models)
    if match is None:
        return _absent(client, spec, local_models)
    return match if spec.is_version(match.digest) else "other version"


def _full(spec: ModelSpec) -> str:
    return ModelName.parse(spec.name).short


def in_memory_after(client: Client, names: set[str], limit_s: float) -> set[str]:
    """Wait until none of *names* is loaded; return those that still are after *limit_s*."""
    end = clock.monotonic() + limit_s
    while left := names & {model.name for model in client.loaded_models()}:
        if clock.monotonic() > end:
            break
        clock.sleep(0.05)
    return left


def _hash(parts: Iterable[str]) -> str:
    """Return a few hex digits that are the same for the same *parts* in any order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _head(settings: Settings, command: str) -> list[str]:
    """Say where the server is, and which models the environment lists."""
    listed, host = settings.listed, settings.host
    lines = [f"{host.url} ({origin(host.source)})"]
    if listed.specs and listed.source.startswith("OLLAMA_"):
        lines.append(f"{command} {' '.join(map(str, listed.specs))} (from {listed.source})")
    return lines


def _print_table(
    settings: Settings, command: str, lines_of: Callable[..., list[str]], rows: Iterable[Any]
) -> None:
    for line in _head(settings, command):
        print(f"ollama: {line}")
    # A pipe gets each name whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines_of(rows, plain=not can_write_signs(sys.stdout), width=width):
        print(line)


def _screen(out: TextIO, quiet: int) -> Screen:
    live = out.isatty()
    coloured = live and not os.environ.get("NO_COLOR")

    def write(line: str, **colours: bool) -> None:
        red = coloured and colours.get("red")
        print(f"\x1b[31m{line}\x1b[0m" if red else line, file=out, flush=True)

    return Screen(
        write,
        verbosity=-quiet,
        live=out if live else None,
        width=(lambda: shutil.get_terminal_size().columns) if live else 0,
        coloured=coloured,
        plain=not can_write_signs(out),
    )
