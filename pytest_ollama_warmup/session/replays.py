"""Find tests that pytest-recording or pytest-vcr replays from a cassette: they need no model.

Neither library is imported. Their fixtures, options and marks are known by name, as in
pytest-recording 0.14, pytest-vcr 1.0 and VCR.py 9. A test counts as replayed only if none of its
requests can reach the network. If that is known only when the test runs, the test needs its models.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_ollama_warmup.session.definitions import definitions_of
from pytest_ollama_warmup.session.mark_names import RECORDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_DEFAULT_CASSETTE = "default_cassette"
_CONFIG_FIXTURE = "vcr_config"
# A setting that only the running test can read; true, so that it counts as given.
_UNKNOWN = object()


class _Plugin(NamedTuple):
    module: str
    deciding: tuple[str, ...]
    """Fixtures that decide whether and how a test is replayed."""
    placing: tuple[str, ...]
    """Fixtures that decide where its cassette is."""


_RECORDING = _Plugin(
    "pytest_recording.plugin",
    ("vcr", "vcr_markers", "record_mode", "disable_recording"),
    ("vcr_cassette_dir", "default_cassette_name"),
)
_VCR = _Plugin(
    "pytest_vcr", ("_vcr_marker", "vcr", "vcr_cassette"), ("vcr_cassette_dir", "vcr_cassette_name")
)
# Settings of VCR.py that let no request through to the network. Others, such as ignore_localhost
# and before_record_request, may.
_CLOSED = {
    "additional_matchers",
    "after_load_interaction",
    "allow_playback_repeats",
    "allowed_hosts",
    "before_record_response",
    "before_save_interaction",
    "decode_compressed_response",
    "drop_unused_requests",
    "filter_headers",
    "filter_nested_post_data_parameters",
    "filter_post_data_parameters",
    "filter_query_parameters",
    "filter_sensitive_data",
    "inject_cassette",
    "match_on",
    "record_mode",
    "record_on_exception",
}
# These move a cassette: without a file at the usual place nobody knows whether it was recorded.
_MOVING = {"cassette_library_dir", "func_path_generator", "path_transformer", "persister"}
_SERIALIZER = "serializer"
# A cassette begins with its first request.
_CASSETTE_HEAD = 1 << 16

_REPLAYED = pytest.StashKey[bool]()
_REPLAYED_TESTS: pytest.StashKey[set[str]] = pytest.StashKey()
_CONFIGS: pytest.StashKey[dict[Callable[..., object], dict[str, object] | None]] = pytest.StashKey()


def is_replayed(item: pytest.Item, marks: Iterable[pytest.Mark]) -> bool:
    """Whether *item*, with these *marks* and the closest first, sends no request to a server.

    The answer stays what it was at first: with ``once`` the test itself writes its cassette.
    """
    if _REPLAYED not in item.stash:
        all_marks = list(marks)
        of_vcr = [mark for mark in all_marks if mark.name == RECORDED]
        replayed = bool(of_vcr) and (
            _recording_replays(item, of_vcr, all_marks) or _vcr_replays(item, of_vcr)
        )
        item.stash[_REPLAYED] = replayed
        if replayed:
            item.config.stash.setdefault(_REPLAYED_TESTS, set()).add(item.nodeid)
    return item.stash[_REPLAYED]


def may_have_recorded(options: object) -> bool:
    """Whether the next run with these *options* may replay what one like it has recorded.

    So it is with ``once``, which marks and fixtures can ask for too.
    """
    modes = ("record_mode", "vcr_record", "deprecated_vcr_record")
    values = {getattr(options, name) for name in modes if hasattr(options, name)}
    return bool(values) and values.isdisjoint({"none", "new_episodes", "all", "rewrite"})


def needs_no_server_now(config: pytest.Config, any_needs: Callable[[], bool]) -> bool:
    """Whether what runs now, a test or its set-up, is replayed and looks for no model.

    A fixture of a wide scope may serve other tests too: it looks for one if any test needs one.
    """
    replayed = config.stash.get(_REPLAYED_TESTS, set())
    if not replayed:
        return False
    test, _, phase = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")
    if phase == "(call)":
        return test in replayed
    return not any_needs()


def _recording_replays(
    item: pytest.Item, of_vcr: Sequence[pytest.Mark], marks: Sequence[pytest.Mark]
) -> bool:
    option = item.config.option
    if getattr(option, "disable_recording", False) or not _decides(_RECORDING, item):
        return False
    # The suite may change anything about VCR.py in it.
    hook = getattr(item.config.hook, "pytest_recording_configure", None)
    if hook is not None and hook.get_hookimpls():
        return False
    settings = _settings(item, _RECORDING, of_vcr)
    asked = getattr(option, "record_mode", None) or "none"
    if settings is None or not _is_closed(settings) or asked == "rewrite":
        return False
    # The option is only a default, even if it is given.
    mode: object = settings.get("record_mode", asked)
    if mode != "once" or not _places(_RECORDING, item, settings):
        return mode == "none"
    serializer = settings.get(_SERIALIZER, "yaml")
    named = [mark.args[0] for mark in marks if mark.name == _DEFAULT_CASSETTE and mark.args]
    name = named[0] if named else _recording_name(item)
    folder = item.path.parent / "cassettes" / item.path.stem
    names = [
        _with_suffix(name, f".{serializer}"),
        *(cassette for mark in of_vcr for cassette in mark.args),
    ]
    return any(_is_recorded(folder, cassette) for cassette in names)


def _recording_name(item: pytest.Item) -> str:
    cls = getattr(item, "cls", None)
    name = f"{cls.__name__}.{item.name}" if cls else item.name
    return "".join("-" if char in "<>?%*:|\"'/\\" else char for char in name)


def _vcr_replays(item: pytest.Item, of_vcr: Sequence[pytest.Mark]) -> bool:
    option = item.config.option
    if getattr(option, "disable_vcr", False) or not _decides(_VCR, item):
        return False
    # Of the marks around a test it knows the module's only, and the closest of all.
    module = item.getparent(pytest.Module)
    outer = module.get_closest_marker(RECORDED) if module is not None else None
    settings = _settings(item, _VCR, [of_vcr[0], *([outer] if outer is not None else [])])
    if settings is None or not _is_closed(settings):
        return False
    asked = getattr(option, "vcr_record", None) or getattr(option, "deprecated_vcr_record", None)
    mode: object = asked or settings.get("record_mode", "once")
    if mode != "once" or not _places(_VCR, item, settings):
        return mode == "none"
    cls = getattr(item, "cls", None)
    name = f"{cls.__name__}.{item.name}" if cls else item.name
    return _is_recorded(item.path.parent / "cassettes", _with_suffix(name, ".yaml"))


def _decides(plugin: _Plugin, item: pytest.Item) -> bool:
    """Whether *plugin* replays marked tests here, and the suite replaces nothing of that."""
    first, *_ = plugin.deciding
    return first in getattr(item, "fixturenames", ()) and _are_of(plugin, plugin.deciding, item)


def _places(plugin: _Plugin, item: pytest.Item, settings: Mapping[str, object]) -> bool:
    """Whether the cassette is at the usual place."""
    moved = any(settings.get(name) for name in _MOVING)
    text = isinstance(settings.get(_SERIALIZER, ""), str)
    return text and not moved and _are_of(plugin, plugin.placing, item)


def _are_of(plugin: _Plugin, fixtures: Iterable[str], item: pytest.Item) -> bool:
    chains = [definitions_of(name, item) for name in fixtures]
    # Older versions have fewer of them.
    return all(chain[-1].func.__module__ == plugin.module for chain in chains if chain)


def _settings(
    item: pytest.Item, plugin: _Plugin, of_vcr: Sequence[pytest.Mark]
) -> dict[str, object] | None:
    """Return what is set for VCR.py, the closest mark first; None if only the run can say."""
    definitions = definitions_of(_CONFIG_FIXTURE, item)
    settings: dict[str, object] | None = {}
    if definitions and (function := definitions[-1].func).__module__ != plugin.module:
        # Many tests share it.
        configs = item.config.stash.setdefault(_CONFIGS, {})
        if function not in configs:
            configs[function] = _returned_by(function)
        settings = configs[function]
    if settings is None:
        return None
    return settings | {
        name: value for mark in reversed(of_vcr) for name, value in mark.kwargs.items()
    }


def _is_closed(settings: Mapping[str, object]) -> bool:
    # ignore_localhost=False is as good as none.
    allowed = {*_CLOSED, *_MOVING, _SERIALIZER}
    return all(name in allowed or not value for name, value in settings.items())


def _returned_by(function: Callable[..., object]) -> dict[str, object] | None:
    """Return the dict that *function* has in its one statement; None if it is made otherwise.

    It is read and never called: a fixture of the suite may do anything. Values that are no
    literals are unknown.
    """
    import ast
    import inspect
    import textwrap

    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    body = definition.body if isinstance(definition, ast.FunctionDef) else []
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if len(body) != 1 or not isinstance(body[0], ast.Return):
        return None
    made = body[0].value
    pairs: list[tuple[object, ast.expr]] = []
    if isinstance(made, ast.Dict):
        for key, value in zip(made.keys, made.values, strict=True):
            pairs.append((key.value if isinstance(key, ast.Constant) else None, value))
    elif isinstance(made, ast.Call) and ast.unparse(made.func) == "dict" and not made.args:
        pairs += [(keyword.arg, keyword.value) for keyword in made.keywords]
    else:
        return None
    settings: dict[str, object] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            return None
        settings[name] = _UNKNOWN
        with suppress(ValueError):
            settings[name] = ast.literal_eval(value)
    return settings


def _with_suffix(name: str, suffix: str) -> str:
    return name if name.endswith(suffix) else name + suffix


def _is_recorded(folder: Path, name: object) -> bool:
    """Whether the cassette *name* holds a request: an empty one is recorded again."""
    if not isinstance(name, str):
        return False
    # A name that is too long for a file is shortened, in ways that change.
    with suppress(OSError, ValueError), (folder / name).open("rb") as cassette:
        return b"request" in cassette.read(_CASSETTE_HEAD)
    return False
