"""The mark requires_model: its signature, and what the items of a session want."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_ollama_warmup.errors import BadMark, BadSpec

if TYPE_CHECKING:
    from pytest_ollama_warmup.warmup.plan import Want
    from pytest_ollama_warmup.warmup.spec import ModelSpec

NAME = "requires_model"
MARK = f"{NAME}(*specs, capabilities=(), options=None, on_missing=None)"
MARK_HELP = (
    f"{MARK}: the test needs these Ollama models, pulled and loaded before it runs; without specs "
    "it needs the listed one. capabilities are what they must be able to do, such as tools; "
    "options are runner options such as num_ctx; on_missing is skip, fail, exit or auto."
)
ON_MISSING = ("auto", "exit", "fail", "skip")

# Who gets one of these needs Ollama, and of these two, to know which model.
NEEDING_A_NAME = ("ollama_model", "ollama_options")
NEEDING = (*NEEDING_A_NAME, "ollama_models", "ollama_client", "ollama_async_client")
HOST_FIXTURE = "ollama_host"
ELSEWHERE_FIXTURE = "_ollama_elsewhere"
_NAMES = {*NEEDING, HOST_FIXTURE}
_FIXTURES_MODULE = "pytest_ollama_warmup.fixtures"


def prepare_items(items: Iterable[pytest.Item]) -> None:
    """Add the mark to items that get one of our fixtures, before ``-m`` looks at marks.

    Those whose suite gives them another server also get the fixture that brings models to it.
    """
    around, may_use = _Around(), _MayUseFixtures()
    for item in items:
        marked = around.is_marked(item)
        if not marked and may_use(item) and _our_fixtures(item):
            item.add_marker(getattr(pytest.mark, NAME))
            marked = True
        if marked and _is_elsewhere(item):
            names: list[str] = item.fixturenames  # type: ignore[attr-defined]
            # Tests that differ in parameters only share this list.
            if ELSEWHERE_FIXTURE not in names:
                names.insert(0, ELSEWHERE_FIXTURE)


class _Around:
    """The marks of the classes and modules around items, asked once where items share them."""

    def __init__(self) -> None:
        self._parent: object = None
        self._marked = False
        self.marks: list[pytest.Mark] = []
        """Those around the item that was asked about last, the closest first."""

    def is_marked(self, item: pytest.Item) -> bool:
        """Whether *item* has our mark, by itself or from around it."""
        if item.parent is not self._parent:
            self._parent = item.parent
            self.marks = [] if item.parent is None else list(item.parent.iter_markers())
            self._marked = any(mark.name == NAME for mark in self.marks)
        if self._marked:
            return True
        # No any(): this is asked of each test of each suite.
        for mark in item.own_markers:  # noqa: SIM110
            if mark.name == NAME:
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


def want_of(item: pytest.Item) -> Want | None:
    """Return what one item wants; None for an item without the mark, or that will not run.

    Raises:
        BadMark: a mark does not fit its signature.
    """
    return _want_of(item, list(item.iter_markers()))


def _want_of(item: pytest.Item, all_marks: list[pytest.Mark]) -> Want | None:
    marks = [mark for mark in all_marks if mark.name == NAME]
    if not marks or any(_prevents(mark, item) for mark in all_marks):
        return None
    # Imported here: most tests of most environments have no such mark.
    from pytest_ollama_warmup.warmup.plan import Want

    specs = {spec.model_key: spec for spec in _parameter(item)}
    on_missing, of_listed = "", list[str]()
    before = item.config.stash.setdefault(_READ, {})
    for mark in marks:
        if id(mark) not in before:
            # With the mark itself, whose id could else become another one's.
            before[id(mark)] = mark, _read(mark, item.nodeid)
        _, read = before[id(mark)]
        on_missing = on_missing or read.on_missing
        if not read.specs:
            of_listed += read.capabilities
        for spec in read.specs:
            # The closest mark comes first and wins; one further out may add to it.
            known = specs.setdefault(spec.model_key, spec)
            if known is not spec:
                specs[spec.model_key] = replace(
                    known if known.options or not spec.options else spec,
                    capabilities=_united(known.capabilities, spec.capabilities),
                )
    fixture = (
        "" if specs else next((one for one in _our_fixtures(item) if one in NEEDING_A_NAME), "")
    )
    return Want(
        test=item.nodeid,
        specs=tuple(specs.values()),
        fixture=fixture,
        on_missing=on_missing,
        capabilities=_united(of_listed),
        elsewhere=_is_elsewhere(item),
    )


def _united(*lists: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for each in lists for one in each))


_ELSEWHERE = pytest.StashKey["dict[object, bool]"]()
# Many tests share a mark.
_READ = pytest.StashKey["dict[int, tuple[pytest.Mark, _Read]]"]()


class _Read(NamedTuple):
    specs: tuple[ModelSpec, ...]
    capabilities: tuple[str, ...]
    on_missing: str


def _read(mark: pytest.Mark, test: str) -> _Read:
    try:
        return _requires_model(*mark.args, **mark.kwargs)
    except TypeError as exc:
        why = str(exc).replace("_requires_model()", NAME)
    except BadSpec as exc:
        why = str(exc)
    raise BadMark(why, test, MARK)


def _requires_model(
    *specs: str,
    capabilities: str | Iterable[str] = (),
    options: Mapping[str, object] | None = None,
    on_missing: str | None = None,
) -> _Read:
    from pytest_ollama_warmup.warmup.spec import parse_specs

    source = f"@pytest.mark.{NAME}"
    for text in specs:
        if not isinstance(text, str):
            raise TypeError(f"a model is named by a text, not by {text!r}")
        if not text.strip():
            raise TypeError("a model name is empty")
    read = parse_specs(specs, source)
    wanted = [capabilities] if isinstance(capabilities, str) else capabilities
    if not isinstance(wanted, Iterable) or not all(isinstance(one, str) for one in wanted):
        raise TypeError(f'capabilities are texts like ["tools"], not {capabilities!r}')
    if options is not None:
        if not isinstance(options, Mapping):
            raise TypeError(f"options is a dict of runner options, not {options!r}")
        if not read:
            raise TypeError("options are for the models that the mark names, and it names none")
        read = tuple(spec.given(options, source) for spec in read)
    if on_missing is not None and on_missing not in ON_MISSING:
        raise TypeError(
            f"{on_missing!r} is not a valid on_missing; valid values: {', '.join(ON_MISSING)}"
        )
    able = tuple(wanted)
    return _Read(
        tuple(replace(spec, capabilities=_united(able)) for spec in read), able, on_missing or ""
    )


def _our_fixtures(item: pytest.Item) -> list[str]:
    """Return those of our fixtures that *item* gets and that nobody has replaced."""
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


def _parameter(item: pytest.Item) -> tuple[ModelSpec, ...]:
    """Return the spec that ``parametrize("ollama_model", [...], indirect=True)`` gives *item*."""
    params: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    if "ollama_model" not in params or not _is_indirect("ollama_model", item):
        return ()
    from pytest_ollama_warmup.warmup.spec import parse_specs

    value = params["ollama_model"]
    try:
        specs = parse_specs(value, "ollama_model") if isinstance(value, str) else ()
        why = "" if len(specs) == 1 else f"one model is needed, not {value!r}"
    except BadSpec as exc:
        why = str(exc)
    if why:
        raise BadMark(f"parametrize: {why}", item.nodeid, MARK)
    return specs


def _is_indirect(name: str, item: pytest.Item) -> bool:
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        if name in (names.replace(",", " ").split() if isinstance(names, str) else names):
            indirect = mark.args[2] if len(mark.args) > 2 else mark.kwargs.get("indirect", False)
            return indirect is True or (indirect is not False and name in indirect)
    return False


def _is_ours(name: str, item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    if name in params and not _is_indirect(name, item):
        # A test's own argument: pytest's fixture manager knows nothing of it.
        return False
    definitions = item.session._fixturemanager.getfixturedefs(name, item)
    if not definitions:
        return False
    # Public suites have fixtures of these names with other meanings.
    return definitions[-1].func.__module__ == _FIXTURES_MODULE


def _prevents(mark: pytest.Mark, item: pytest.Item) -> bool:
    """Whether *mark* keeps *item* from running."""
    if mark.name == "skip":
        return True
    if mark.name == "skipif":
        return _holds(mark)
    if mark.name != "xfail" or mark.kwargs.get("run", True) is not False:
        return False
    return _holds(mark, without=True) and not item.config.getoption("runxfail", False)


def _holds(mark: pytest.Mark, *, without: bool = False) -> bool:
    """Whether a condition of *mark* is true; *without* is the answer where it has none.

    A text is evaluated by pytest in the test's module, at set-up; it is not guessed here.
    """
    conditions = [*mark.args, *([mark.kwargs["condition"]] if "condition" in mark.kwargs else [])]
    if not conditions:
        return without
    return any(not isinstance(one, str) and bool(one) for one in conditions)
