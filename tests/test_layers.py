"""Imports point one way, and nothing grows too long."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_ollama_warmup

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = pytest_ollama_warmup.__name__
ROOT = Path(pytest_ollama_warmup.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

# What a module may import lies in its own room or in one before it.
LAYERS = (
    "text",
    "errors",
    "ollama",
    "config",
    "emulator",
    "warmup",
    "report",
    "session",
    "api",
    "distributed",
    "cli",
    "top",
)
# Lines; what is longer has more than one subject.
MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 300, 45
# Each library has one module that imports it.
IMPORTERS = {
    "httpx": {"ollama/transport.py"},
    "filelock": {"warmup/locks.py"},
    "rich": {"report/bars.py"},
    "jinja2": {"report/files.py"},
    "ollama": {"session/fixtures.py"},
    "xdist": {"distributed/scheduler.py"},
    # Its own evaluation of conditions in texts, which nothing public does.
    "_pytest": {"session/requirement.py"},
}
KNOW_PYTEST = ("session", "distributed", "top")
# A product of its own, which the plugin does not run on: what it imports of ours, and who it.
EMULATOR_IMPORTS = {"text", "ollama.names"}
EMULATOR_IMPORTERS = {"cli/demo.py", "session/fixtures.py"}


def layer_of(module: str) -> str:
    """The layer of a module given as ``ollama/host.py`` or ``pytest_ollama_warmup.ollama.host``."""
    parts = (
        module.removesuffix(".py").removeprefix(PACKAGE).strip("./").replace("/", ".").split(".")
    )
    return parts[0] if parts[0] in LAYERS else "top"


@cache
def imported_by(source: str, *, members: bool = False) -> list[str]:
    """All that *source* imports, in functions and under TYPE_CHECKING too.

    With *members* also what it imports from a module, which may be a module too.
    """
    return [*_imports(source, members)]


def _imports(source: str, members: bool) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level, "imports name the package"
            module = str(node.module)
            if members or module == PACKAGE:
                yield from (f"{module}.{name.name}" for name in node.names)
            if module != PACKAGE:
                yield module


def libraries_of(module: str) -> set[str]:
    found = {name.partition(".")[0] for name in imported_by((ROOT / module).read_text("utf-8"))}
    return found - set(sys.stdlib_module_names) - {PACKAGE}


def ours_in(source: str) -> set[str]:
    """Our modules that *source* imports, without the name of the package."""
    names = imported_by(source)
    return {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}


def upward(module: str, source: str) -> list[str]:
    own = LAYERS.index(layer_of(module))
    ours = [name for name in imported_by(source) if name.startswith(f"{PACKAGE}.")]
    return [name for name in ours if LAYERS.index(layer_of(name)) > own]


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("text.py", "text"),
        ("ollama/host.py", "ollama"),
        ("plugin.py", "top"),
        ("__init__.py", "top"),
        (f"{PACKAGE}.errors", "errors"),
        (f"{PACKAGE}.ollama.host", "ollama"),
        (f"{PACKAGE}.warmup", "warmup"),
        (f"{PACKAGE}.session.session", "session"),
        (f"{PACKAGE}.api", "api"),
    ],
)
def test_a_module_lies_in_the_layer_of_its_folder(module: str, layer: str) -> None:
    assert layer == layer_of(module)


@pytest.mark.parametrize(
    "line",
    [
        f"import {PACKAGE}.warmup.ensure",
        f"from {PACKAGE}.plugin import pytest_configure",
        f"from {PACKAGE} import api",
        f"from {PACKAGE}.session import session",
        f"def late():\n    from {PACKAGE}.report.progress import Screen",
        f"if TYPE_CHECKING:\n    from {PACKAGE}.warmup.plan import Target",
    ],
)
def test_an_import_that_points_up_is_found_wherever_it_stands(line: str) -> None:
    assert 1 == len(upward("ollama/client.py", line))
    assert [] == upward("plugin.py", line)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert [] == upward(module, (ROOT / module).read_text("utf-8"))


def too_long(module: str, source: str) -> set[str]:
    """What of a module has too many lines: itself, or a class or function in it."""
    found = {module} if len(source.splitlines()) > MODULE_LINES else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            most = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if int(node.end_lineno or 0) - node.lineno + 1 > most:
                found.add(f"{module}:{node.name}")
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("pass\n" * 400, set()),
        ("pass\n" * 401, {"a.py"}),
        ("def f():\n" + "    pass\n" * 44, set()),
        ("def f():\n" + "    pass\n" * 45, {"a.py:f"}),
        ("class A:\n" + "    x = 1\n" * 299, set()),
        ("class A:\n" + "    x = 1\n" * 300, {"a.py:A"}),
        ("class A:\n    async def f(self):\n" + "        pass\n" * 45, {"a.py:f"}),
    ],
)
def test_lines_are_counted(source: str, found: set[str]) -> None:
    assert found == too_long("a.py", source)


def test_no_module_class_or_function_is_too_long() -> None:
    found = [too_long(module, (ROOT / module).read_text("utf-8")) for module in MODULES]
    assert set() == set().union(*found)


def in_circles(imports: dict[str, set[str]]) -> set[str]:
    """Which modules import themselves by way of others, here or under TYPE_CHECKING."""

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*imports[module]]
        while ahead:
            if (one := ahead.pop()) not in seen:
                seen.add(one)
                ahead += imports.get(one, ())
        return seen

    return {module for module in imports if module in reached(module)}


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, set()),
        ({"a": {"b"}, "b": {"a"}}, {"a", "b"}),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {"b", "c"}),
    ],
)
def test_a_circle_is_found(imports: dict[str, set[str]], found: set[str]) -> None:
    assert found == in_circles(imports)


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {module.removesuffix(".py").removesuffix("/__init__") for module in MODULES}
    imports = {}
    for module in MODULES:
        own = module.removesuffix(".py").removesuffix("/__init__")
        ours = {
            name.removeprefix(f"{PACKAGE}.").replace(".", "/")
            for name in imported_by((ROOT / module).read_text("utf-8"), members=True)
        }
        imports[own] = (ours & names) - {own}
    assert set() == in_circles(imports)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_suppressed_without_a_trace(module: str) -> None:
    assert "suppress(Exception" not in (ROOT / module).read_text("utf-8")


def test_every_room_has_modules() -> None:
    assert set(LAYERS) == {layer_of(module) for module in MODULES}


def test_the_emulator_stands_alone() -> None:
    modules = [module for module in MODULES if layer_of(module) == "emulator"]
    imported = {name for one in modules for name in ours_in((ROOT / one).read_text("utf-8"))}
    assert set() == {name for name in imported if layer_of(name) != "emulator"} - EMULATOR_IMPORTS


def test_the_plugin_does_not_run_on_the_emulator() -> None:
    importers = {
        module
        for module in MODULES
        if any(name.startswith("emulator") for name in ours_in((ROOT / module).read_text("utf-8")))
    }
    outside = {module for module in importers if layer_of(module) != "emulator"}
    assert EMULATOR_IMPORTERS == outside


@pytest.mark.parametrize("library", sorted(IMPORTERS))
def test_each_library_has_its_one_importer(library: str) -> None:
    assert IMPORTERS[library] == {one for one in MODULES if library in libraries_of(one)}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_else_is_imported_and_pytest_only_by_rooms_that_serve_it(module: str) -> None:
    allowed = {library for library, importers in IMPORTERS.items() if module in importers}
    if layer_of(module) in KNOW_PYTEST or module in ("config/options.py", "config/ini.py"):
        allowed.add("pytest")
    assert set() == libraries_of(module) - allowed
