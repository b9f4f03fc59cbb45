"""The marks requires_model and requires_ollama_model, and what the items of a session want.

Public suites have a mark ``requires_model`` of their own, for spaCy models, weights or containers:
the longer name is always ours, the short one where nobody else has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_ollama_warmup.errors import CAPABILITIES, BadMark, BadSpec
from pytest_ollama_warmup.session.state import OllamaWarmupWarning, settings_of, worker_input

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.spec import ModelSpec
    from pytest_ollama_warmup.warmup.plan import Want

NAME = "requires_model"
LONG_NAME = "requires_ollama_model"
# The mark of pytest-recording and pytest-vcr.
RECORDED = "vcr"
_SIGNATURE = "(*specs, capabilities=(), options=None, on_unavailable=None)"
MARK = f"{NAME}{_SIGNATURE}"
MARK_HELP = (
    f"{MARK}: the test needs these Ollama models, pulled and loaded before it runs; without specs "
    "it needs the listed one. capabilities are what they must be able to do, such as tools; "
    "options are runner options such as num_ctx; on_unavailable is skip, fail, exit or auto."
)
LONG_MARK_HELP = (
    f"{LONG_NAME}{_SIGNATURE}: the same, for suites that have a mark {NAME} of their own."
)
KEEP_ORDER = "ollama_keep_order"
KEEP_ORDER_HELP = (
    f"{KEEP_ORDER}: the tests of this module or class stay together in their order, also where "
    "--ollama-group-by-model or --ollama-background reorders tests."
)
ON_UNAVAILABLE = ("auto", "exit", "fail", "skip")

# Who gets one of these needs Ollama, and of these two, to know which model.
NEEDING_A_NAME = ("ollama_model", "ollama_options")
NEEDING = (*NEEDING_A_NAME, "ollama_models", "ollama_client", "ollama_async_client")
HOST_FIXTURE = "ollama_host"
EMULATOR_FIXTURE = "ollama_emulator"
ELSEWHERE_FIXTURE = "_ollama_elsewhere"
_NAMES = {*NEEDING, HOST_FIXTURE}
_FIXTURES_MODULE = "pytest_ollama_warmup.session.fixtures"


def prepare_items(items: Iterable[pytest.Item]) -> None:
    """Add the mark to items that get one of our fixtures, before ``-m`` looks at marks.

    Those whose suite gives them another server also get the fixture that brings models to it.
    """
    around, may_use = _Around(), _MayUseFixtures()
    for item in items:
        marked = around.is_marked(item)
        if not marked and may_use(item):
            if _our_fixtures(item):
                item.add_marker(getattr(pytest.mark, LONG_NAME if around.is_taken else NAME))
                marked = True
            elif not is_emulated(item):
                _hint_at_indirect(item)
        # One name is enough to select or deselect all tests that need a model.
        elif marked and not around.is_taken and item.get_closest_marker(NAME) is None:
            item.add_marker(getattr(pytest.mark, NAME))
        if marked and _is_elsewhere(item) and not is_emulated(item):
            names: list[str] = item.fixturenames  # type: ignore[attr-defined]
            # Tests that differ in parameters only share this list.
            if ELSEWHERE_FIXTURE not in names:
                names.insert(0, ELSEWHERE_FIXTURE)


class _Around:
    """The marks of the classes and modules around items, asked once where items share them."""

    def __init__(self) -> None:
        self._parent: object = None
        self._marked = False
        self._names: tuple[str, ...] | None = None
        self.marks: list[pytest.Mark] = []
        """Those around the item that was asked about last, the closest first."""

    @property
    def is_taken(self) -> bool:
        """Whether the short name means something else in this suite."""
        return self._names == (LONG_NAME,)

    def is_marked(self, item: pytest.Item) -> bool:
        """Whether *item* has a mark of ours, by itself or from around it."""
        if item.parent is not self._parent:
            if self._names is None:
                self._names = _names_in(item.config)
            self._parent = item.parent
            self.marks = [] if item.parent is None else list(item.parent.iter_markers())
            self._marked = any(mark.name in self._names for mark in self.marks)
        if self._marked:
            return True
        names = self._names or ()
        # No any(): this is asked of each test of each suite.
        for mark in item.own_markers:  # noqa: SIM110
            if mark.name in names:
                return True
        return False


class _MayUseFixtures:
    """Whether an item has a fixture or an argument of a name of ours; tests of one function share.

    What they share is the list of these names.
    """

    def __init__(self) -> None:
        self._names: object = None
        self._may = False

    def __call__(self, item: pytest.Item) -> bool:
        names = getattr(item, "fixturenames", ())
        if names is not self._names:
            self._names = names
            self._may = not _NAMES.isdisjoint(names)
        return self._may


def wants_of(items: Iterable[pytest.Item]) -> list[Want]:
    """Return what *items* want, in their order; those that need no model are left out.

    Raises:
        BadMark: a mark does not fit its signature; names the test.
    """
    return [want for want in each_want(items) if want is not None]


def each_want(items: Iterable[pytest.Item]) -> Iterator[Want | None]:
    """Yield what each of *items* wants; None where that is nothing.

    Raises:
        BadMark: a mark does not fit its signature; names the test.
    """
    around = _Around()
    for item in items:
        marked = around.is_marked(item)
        yield _want_of(item, [*item.own_markers, *around.marks]) if marked else None


def want_of(item: pytest.Item, *, replayed: bool = False) -> Want | None:
    """Return what one item wants; None for an item without the mark, or that will not run.

    None too for one that is replayed from a recording, unless *replayed* asks for what it names.

    Raises:
        BadMark: a mark does not fit its signature.
    """
    return _want_of(item, list(item.iter_markers()), replayed=replayed)


def _want_of(
    item: pytest.Item, all_marks: list[pytest.Mark], *, replayed: bool = False
) -> Want | None:
    names = _names_in(item.config)
    if NAME not in names and _our_fixtures(item):
        # The test needs a model of ours: whose name its mark tells is no question.
        names = (NAME, LONG_NAME)
    marks = [mark for mark in all_marks if mark.name in names]
    if not marks or is_emulated(item) or any(_prevents(mark, item) for mark in all_marks):
        return None
    if not replayed and any(mark.name == RECORDED for mark in all_marks):
        from pytest_ollama_warmup.session.replays import is_replayed

        if is_replayed(item, all_marks):
            return None
    # Imported here: most tests of most environments have no such mark.
    from pytest_ollama_warmup.warmup.plan import Want

    specs = {spec.model_key: spec for spec in _parameter(item)}
    on_unavailable, of_listed = "", list[str]()
    before = item.config.stash.setdefault(_READ, {})
    for mark in marks:
        if id(mark) not in before:
            # With the mark itself, whose id could else become another one's.
            before[id(mark)] = mark, _read(mark, item.nodeid)
        _, read = before[id(mark)]
        on_unavailable = on_unavailable or read.on_unavailable
        if not read.specs:
            of_listed += read.capabilities
        for spec in read.specs:
            # The closest mark comes first and wins; one further out may add to it.
            known = specs.setdefault(spec.model_key, spec)
            if known is not spec:
                first = known if known.options or not spec.options else spec
                specs[spec.model_key] = first._replace(
                    capabilities=_united(known.capabilities, spec.capabilities),
                )
    _check_direct(item, specs)
    fixture = (
        "" if specs else next((one for one in _our_fixtures(item) if one in NEEDING_A_NAME), "")
    )
    return Want(
        test=item.nodeid,
        specs=tuple(specs.values()),
        fixture=fixture,
        on_unavailable=on_unavailable,
        capabilities=_united(of_listed),
        elsewhere=_is_elsewhere(item),
    )


_NAMES_OF_SUITE = pytest.StashKey[tuple[str, ...]]()


def _names_in(config: pytest.Config) -> tuple[str, ...]:
    """Return which names of marks are ours in this suite."""
    if _NAMES_OF_SUITE not in config.stash:
        taken = not settings_of(config).configured and _is_taken(config.getini("markers"))
        config.stash[_NAMES_OF_SUITE] = (LONG_NAME,) if taken else (NAME, LONG_NAME)
    return config.stash[_NAMES_OF_SUITE]


def _is_taken(lines: Iterable[str]) -> bool:
    """Whether the suite registers the short name by itself, and says nothing of Ollama."""
    theirs = [
        line
        for line in lines
        if line != MARK_HELP and line.partition(":")[0].partition("(")[0].strip() == NAME
    ]
    return bool(theirs) and not any("ollama" in line.lower() for line in theirs)


def _united(*lists: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for each in lists for one in each))


_ELSEWHERE = pytest.StashKey["dict[object, bool]"]()
# Many tests share a mark.
_READ = pytest.StashKey["dict[int, tuple[pytest.Mark, _Read]]"]()


class _Read(NamedTuple):
    specs: tuple[ModelSpec, ...]
    capabilities: tuple[str, ...]
    on_unavailable: str


def _read(mark: pytest.Mark, test: str) -> _Read:
    try:
        return _requires_model(*mark.args, **mark.kwargs)
    except (TypeError, BadSpec) as exc:
        why = str(exc)
    raise BadMark(why, test, MARK)


def _requires_model(
    *specs: str,
    capabilities: str | Iterable[str] = (),
    options: Mapping[str, object] | None = None,
    on_unavailable: str | None = None,
    **others: object,
) -> _Read:
    from pytest_ollama_warmup.config.spec import parse_specs
    from pytest_ollama_warmup.ollama.names import closest

    source = f"@pytest.mark.{NAME}"
    for name, value in others.items():
        raise TypeError(_meant_argument(name, value))
    for text in specs:
        if isinstance(text, list | tuple | set):
            each = ", ".join(f'"{one}"' for one in text)
            raise TypeError(f"each model is an argument of its own: {NAME}({each})")
        if not isinstance(text, str):
            raise TypeError(f"model names must be strings, got {text!r}")
        if not text.strip():
            raise TypeError("a model name is empty")
    read = parse_specs(specs, source)
    wanted = [capabilities] if isinstance(capabilities, str) else capabilities
    if not isinstance(wanted, Iterable) or not all(isinstance(one, str) for one in wanted):
        raise TypeError(f'capabilities must be strings such as ["tools"], got {capabilities!r}')
    for one in wanted:
        if one not in CAPABILITIES and (meant := closest(one, CAPABILITIES)):
            raise TypeError(f"no model has the capability {one!r}; did you mean {meant!r}?")
    if options is not None:
        if not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict of runner options, got {options!r}")
        if not read:
            raise TypeError("options are for the models that the mark names, and it names none")
        read = tuple(spec.given(options, source) for spec in read)
    if on_unavailable is not None and on_unavailable not in ON_UNAVAILABLE:
        valid = ", ".join(ON_UNAVAILABLE)
        raise TypeError(f"{on_unavailable!r} is not a valid on_unavailable; valid values: {valid}")
    able = tuple(wanted)
    return _Read(
        tuple(spec._replace(capabilities=_united(able)) for spec in read),
        able,
        on_unavailable or "",
    )


def _meant_argument(name: str, value: object) -> str:
    """Say what to write instead of ``NAME=VALUE``, which the mark does not take."""
    from pytest_ollama_warmup.config.spec import KEYS, OF_REQUESTS
    from pytest_ollama_warmup.ollama.names import closest

    if name in ("model", "models", "spec", "specs", "name", "names"):
        values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
        each = ", ".join(f'"{one}"' for one in values)
        return f"models are given without {name}=: {NAME}({each})"
    if name in KEYS:
        written = f'"{value}"' if isinstance(value, str) else repr(value)
        return f'{name} goes into options={{"{name}": {written}}}'
    if name in OF_REQUESTS:
        return f"{name} does not decide how a model is loaded: send it with each request"
    known = ("capabilities", "options", "on_unavailable")
    meant = closest(name, known)
    return f"{NAME} has no argument {name}" + (f"; did you mean {meant}?" if meant else "")


def is_emulated(item: pytest.Item) -> bool:
    """Whether *item* gets an emulated Ollama, ours or the suite's own: it needs no real one."""
    return EMULATOR_FIXTURE in getattr(item, "fixturenames", ()) and any(
        map(_is_from_us, definitions_of(EMULATOR_FIXTURE, item))
    )


def fixtures_of_the_run(item: pytest.Item) -> list[str]:
    """Return those of our fixtures that *item* gets and that lead to the server of the run."""
    wanted: list[str] = item.fixturenames  # type: ignore[attr-defined]
    found = [name for name in NEEDING if name in wanted and _is_ours(name, item)]
    # All of these use the address.
    addresses = () if found else (HOST_FIXTURE, "ollama_openai_base_url")
    return found + [name for name in addresses if name in wanted and _is_ours(name, item)]


def _our_fixtures(item: pytest.Item) -> list[str]:
    """Return those of our fixtures that *item* gets and that nobody has replaced."""
    if is_emulated(item):
        return []
    names = getattr(item, "fixturenames", ())
    found = [name for name in NEEDING if name in names and _is_ours(name, item)]
    # An address is no need in itself, but one that a hook of the suite has yet to give.
    if HOST_FIXTURE in names and item.config.hook.pytest_ollama_host.get_hookimpls():
        found += [HOST_FIXTURE] if _is_ours(HOST_FIXTURE, item) else []
    return found


def _is_elsewhere(item: pytest.Item) -> bool:
    """Whether the suite has a fixture of its own that says where this item's server is."""
    if not hasattr(item, "fixturenames"):
        return False
    # The same for all tests of a class or a module.
    known, parent = item.config.stash.setdefault(_ELSEWHERE, {}), item.parent
    if parent not in known:
        definitions = item.session._fixturemanager.getfixturedefs(HOST_FIXTURE, item)
        last = definitions[-1].func if definitions else None
        known[parent] = last is not None and last.__module__ != _FIXTURES_MODULE
    return known[parent]


_MODEL_FIXTURE = "ollama_model"


def parameter_of(item: pytest.Item) -> ModelSpec | None:
    """Return the model that *item* gets because its fixture ``ollama_model`` is parametrized.

    However it came to that: by a mark, by ``pytest_generate_tests``, by ``params`` of a fixture of
    the suite that overrides ours. What is collected tells all of it.

    Raises:
        BadMark: the parameter is no model's name.
    """
    value = _parameters(item).get(_MODEL_FIXTURE, _NONE)
    if value is _NONE or not any(map(_is_from_us, definitions_of(_MODEL_FIXTURE, item))):
        return None
    spec = _one_spec(value, item)
    if spec is None:
        raise BadMark(f"parametrize: expected one model, got {value!r}", item.nodeid, MARK)
    return spec


def has_model_of_parameter(item: pytest.Item) -> bool:
    """Whether *item* has its model from a parameter, by name or by a mark of the parameter."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return False
    names = _names_in(item.config)
    return _MODEL_FIXTURE in callspec.params or any(mark.name in names for mark in callspec.marks)


def _parameter(item: pytest.Item) -> tuple[ModelSpec, ...]:
    try:
        spec = parameter_of(item)
    except BadMark:
        if _is_ours(_MODEL_FIXTURE, item):
            raise
        # Theirs may mean anything, and need not ask ours.
        return ()
    return () if spec is None else (spec,)


def _check_direct(item: pytest.Item, specs: Mapping[str, ModelSpec]) -> None:
    """Refuse a parameter that names a model which nobody prepares: ``indirect`` was forgotten.

    Raises:
        BadMark: says what to add.
    """
    spec = _direct_model(item)
    if spec is not None and spec.model_key not in specs:
        raise BadMark(
            f"parametrize({_MODEL_FIXTURE!r}, ...) passes {str(spec)!r} to the test, and nothing "
            "loads that model: add indirect=True",
            item.nodeid,
            MARK,
        )


_HINTED = pytest.StashKey[bool]()


def _hint_at_indirect(item: pytest.Item) -> None:
    """Warn once where a test without a mark has a model as a plain argument: nothing loads it."""
    config, settings = item.config, settings_of(item.config)
    # Each worker collects all tests: one of them is enough.
    worker = worker_input(config).get("workerid", "gw0")
    if _HINTED in config.stash or settings.off or worker != "gw0":
        return
    try:
        spec = _direct_model(item)
    except BadMark:
        return
    # In other suites such an argument may be the name of anything, but hardly with a tag.
    if spec is None or not (settings.configured or ":" in spec.name):
        return
    config.stash[_HINTED] = True
    # Where warnings are errors, the suite runs as it would without us.
    with suppress(OllamaWarmupWarning):
        item.warn(
            OllamaWarmupWarning(
                f"parametrize({_MODEL_FIXTURE!r}, ...) passes {str(spec)!r} to the test as a plain "
                "argument, so nothing loads that model before the test. To have it pulled and "
                "loaded, add indirect=True."
            )
        )


def _direct_model(item: pytest.Item) -> ModelSpec | None:
    """Return the model that *item* has as a plain argument, unless it is listed for the run.

    Raises:
        BadMark: it is no model's name.
    """
    value = _parameters(item).get(_MODEL_FIXTURE, _NONE)
    if value is _NONE or not any(map(_is_direct, definitions_of(_MODEL_FIXTURE, item))):
        return None
    spec, listed = _one_spec(value, item), settings_of(item.config).listed
    return None if spec is None or listed.given(listed.meant(spec)) is not None else spec


_NONE = object()


def _one_spec(value: object, item: pytest.Item) -> ModelSpec | None:
    """Return the one model that a parameter names; None where it names none, or several."""
    from pytest_ollama_warmup.config.spec import parse_specs

    if not isinstance(value, str):
        return None
    try:
        specs = parse_specs(value, _MODEL_FIXTURE)
    except BadSpec as exc:
        raise BadMark(f"parametrize: {exc}", item.nodeid, MARK) from None
    return specs[0] if len(specs) == 1 else None


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return found


def definitions_of(name: str, item: pytest.Item) -> Sequence[pytest.FixtureDef[Any]]:
    """Return what *name* means to *item*, the last one first asked; a plain argument too."""
    info = getattr(item, "_fixtureinfo", None)
    if info is not None and name in info.name2fixturedefs:
        found: Sequence[pytest.FixtureDef[Any]] = info.name2fixturedefs[name]
        return found
    # A name that is only asked for at run time.
    return item.session._fixturemanager.getfixturedefs(name, item) or ()


def _is_direct(definition: pytest.FixtureDef[Any]) -> bool:
    """Whether a parameter is handed to the test as it is; pytest makes a fixture of it too."""
    return definition.func.__name__ == "get_direct_param_fixture_func"


def _is_from_us(definition: pytest.FixtureDef[Any]) -> bool:
    return definition.func.__module__ == _FIXTURES_MODULE


def _is_ours(name: str, item: pytest.Item) -> bool:
    # Public suites have fixtures, and arguments of tests, of these names with other meanings.
    definitions = definitions_of(name, item)
    return bool(definitions) and _is_from_us(definitions[-1])


def _prevents(mark: pytest.Mark, item: pytest.Item) -> bool:
    """Whether *mark* keeps *item* from running."""
    if mark.name == "skip":
        return True
    if mark.name == "skipif":
        return _holds(mark, item)
    if mark.name != "xfail" or mark.kwargs.get("run", True) is not False:
        return False
    return _holds(mark, item, without=True) and not item.config.getoption("runxfail", False)


def _holds(mark: pytest.Mark, item: pytest.Item, *, without: bool = False) -> bool:
    """Whether a condition of *mark* is true; *without* is the answer where it has none."""
    conditions = [*mark.args, *([mark.kwargs["condition"]] if "condition" in mark.kwargs else [])]
    if not conditions:
        return without
    return any(_is_true(one, mark, item) for one in conditions)


def _is_true(condition: object, mark: pytest.Mark, item: pytest.Item) -> bool:
    if not isinstance(condition, str):
        return bool(condition)
    # A text is evaluated by pytest itself, at set-up; where that fails, it is pytest that says so.
    with suppress(Exception, pytest.fail.Exception):
        from _pytest.skipping import evaluate_condition

        return evaluate_condition(item, mark, condition)[0]
    return False
