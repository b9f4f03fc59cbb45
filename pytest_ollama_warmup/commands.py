"""What the commands do, once it is known what was asked of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup import clock
from pytest_ollama_warmup.errors import ApiError, WarmupError
from pytest_ollama_warmup.leader import waiting
from pytest_ollama_warmup.ollama.answers import find, resident_as
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.names import ModelName, is_cloud
from pytest_ollama_warmup.ollama.requests import readable_on_the_way
from pytest_ollama_warmup.preloading import bring_listed
from pytest_ollama_warmup.report.status import Row, lease, status_lines, unload_lines
from pytest_ollama_warmup.report.terminal import (
    PROGRESS_LINE_EVERY_S,
    Screen,
    can_write_signs,
    summary_lines,
)
from pytest_ollama_warmup.warmup.record import SCHEMA, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from pytest_ollama_warmup.ollama.answers import Resident, Stored
    from pytest_ollama_warmup.report.status import State
    from pytest_ollama_warmup.settings import Settings
    from pytest_ollama_warmup.warmup.spec import ModelSpec

# A model at work goes when its requests are over, and they may take minutes.
UNLOAD_LIMIT_S = 5.0


def bring(command: str, settings: Settings, *, quiet: int, as_json: bool) -> bool:
    """Pull and, for ``preload``, load what is listed; return whether all of it is ready."""
    out = sys.stderr if as_json else sys.stdout
    screen, record = _screen(out, quiet), Record()
    if settings.listed.specs:
        screen.say(_title(settings, command))
        _warn_unencrypted(settings)
        record = bring_listed(settings, screen)
        for error in dict.fromkeys(outcome.error for outcome in record.failed):
            screen.say(error, least=-2, red=True)
    else:
        screen.say("no model is named: name some, or list them in OLLAMA_PRELOAD_MODELS")
    if as_json:
        print(json.dumps(record.to_dict(), indent=2))
    else:
        plain = not can_write_signs(out)
        for line in summary_lines(record, only_failed=quiet > 1, plain=plain):
            print(line)
    return not record.failed


def status(settings: Settings, *, as_json: bool) -> bool:
    """Show what is in memory, and what is wanted there; return whether that is so."""
    with _asking(settings) as client:
        rows = _rows(client, settings.listed.specs)
    lacking = [row for row in rows if row.lacking]
    if as_json:
        print_json(settings, [{**asdict(row), "lacking": row.lacking} for row in rows])
        return not lacking
    print(f"ollama: {_title(settings, 'wanted')}")
    for line in status_lines(rows, plain=not can_write_signs(sys.stdout)):
        print(line)
    if not rows:
        print("ollama: no model is in memory, and none is named")
    if lacking:
        specs = " ".join(row.wanted for row in lacking)
        print(f"ollama: not all are in memory; this brings them: ollama-warmup preload {specs}")
    return not lacking


def unload(settings: Settings, *, everything: bool, as_json: bool) -> bool:
    """Take what is listed out of memory, or all there is; return whether it is gone."""
    with _asking(settings) as client:
        resident = client.resident()
        found: dict[str, Resident | None] = {one.name: one for one in resident}
        if not everything:
            stored = client.stored()
            found = {_full(one): _find(one, resident, stored) for one in settings.listed.specs}
        names = {one.name for one in found.values() if one is not None}
        for name in names:
            client.unload(name)
        left = in_memory_after(client, names, UNLOAD_LIMIT_S)
    models: list[dict[str, Any]] = []
    for name, one in found.items():
        state = "cold" if one is None else "in use" if one.name in left else "unloaded"
        models.append({"model": name, "state": state, "size": one.size if one is not None else 0})
    if as_json:
        print_json(settings, models)
        return not left
    print(f"ollama: {_title(settings, 'unload')}{', unload all' if everything else ''}")
    for line in unload_lines(models, plain=not can_write_signs(sys.stdout)):
        print(line)
    if not models:
        print("ollama: no model is in memory")
    return not left


def cache_key(settings: Settings, *, digests: bool) -> None:
    """Print a key for a cache of what is listed: made from names, and from *digests* if asked.

    Raises:
        WarmupError: the digests cannot be had.
    """
    # What a pin names is another download than the same name without it; options are none.
    # A model of the cloud is not downloaded.
    specs = {
        f"{spec.model_key}@{spec.digest}": spec
        for spec in settings.listed.specs
        if not is_cloud(spec.name)
    }
    key = f"ollama-models-{_hash(specs)}"
    if digests:
        with _asking(settings) as client:
            stored = client.stored()
        found = [(spec, find(stored, spec.model_key)) for spec in specs.values()]
        if missing := [str(spec) for spec, one in found if one is None]:
            raise WarmupError(
                f"{', '.join(missing)}: not on {settings.host.url} (from {settings.host.source}), "
                f"so no digest is known. Run 'ollama-warmup pull {' '.join(missing)}' first, "
                "or leave out --digests."
            )
        key += f"-{_hash(f'{spec.model_key}@{one.digest}' for spec, one in found if one)}"
    print(key)


def print_json(settings: Settings, models: list[dict[str, Any]], error: str = "") -> None:
    """Print what a command has found as one document."""
    told = {"schema": SCHEMA, "host": settings.host.url, "error": error, "models": models}
    print(json.dumps(told, indent=2))


def _warn_unencrypted(settings: Settings) -> None:
    if text := readable_on_the_way([settings.host], settings.headers.value):
        print(f"ollama: warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def _asking(settings: Settings) -> Iterator[Client]:
    """Give a client of the server once it answers.

    Raises:
        WarmupError: it does not, or answers with an error; says what and where.
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
        client.wait_until_ready(settings.wait.value, on_wait)
        yield client
    except ApiError as exc:
        raise WarmupError(
            f"{host.url} (from {host.source}) answers with an error: {exc}. Its log may say why."
        ) from exc
    finally:
        client.close()


def _rows(client: Client, specs: Iterable[ModelSpec]) -> list[Row]:
    resident, stored = client.resident(), client.stored()
    rows, seen = [], set()
    for spec in specs:
        one = _find(spec, resident, stored)
        if one is None:
            row = Row(model="", state=_absent(client, spec, stored))
        else:
            seen.add(one.name)
            same_version = one.digest.startswith(spec.digest)
            row = _resident(one, "resident" if same_version else "other version")
        rows.append(
            replace(
                row,
                model=spec._replace(name=_full(spec)).title,
                wanted=str(spec),
                wanted_context=dict(spec.options).get("num_ctx"),
            )
        )
    return rows + [_resident(one) for one in resident if one.name not in seen]


def _resident(one: Resident, state: State = "resident") -> Row:
    return Row(
        model=one.name,
        state=state,
        context_length=one.context_length,
        lease_s=None if one.lease_s is None else lease(one.lease_s),
        size=one.size,
        digest=one.digest,
    )


def _absent(client: Client, spec: ModelSpec, stored: list[Stored]) -> State:
    if is_cloud(spec.name):
        return "in the cloud"
    if find(stored, spec.model_key) is None:
        return "not pulled"
    info = client.show(spec.name)
    return "in the cloud" if info is not None and info.remote_host else "cold"


def _find(spec: ModelSpec, resident: list[Resident], stored: list[Stored]) -> Resident | None:
    """Return the resident model that *spec* means, which may be listed under another name."""
    one = find(stored, spec.model_key)
    return resident_as(resident, spec.model_key, one.digest if one else "")


def _full(spec: ModelSpec) -> str:
    return ModelName.parse(spec.name).short


def in_memory_after(client: Client, names: set[str], limit_s: float) -> set[str]:
    """Wait until none of *names* is in memory; return those that still are after *limit_s*."""
    end = clock.monotonic() + limit_s
    while left := names & {one.name for one in client.resident()}:
        if clock.monotonic() > end:
            break
        clock.sleep(0.05)
    return left


def _hash(parts: Iterable[str]) -> str:
    """Return a few hex digits that are the same for the same *parts* in any order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _title(settings: Settings, doing: str) -> str:
    return settings.title.replace(", preload ", f", {doing} ", 1)


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
        width=shutil.get_terminal_size().columns - 4,
        coloured=coloured,
    )
