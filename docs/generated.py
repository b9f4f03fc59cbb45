"""Write the parts of the reference that the code knows best, each in place of a line.

``<!-- generated: option pull -->`` in a page becomes Markdown about ``--ollama-pull``. The headings
stay in the page, so that links to them work without this module.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import textwrap
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.config.options import OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES = "pytest_ollama_warmup.session.fixtures"
HOOKS = "pytest_ollama_warmup.session.hookspecs"
MARKER = re.compile(r"^<!-- generated: (\w+) ?([\w-]*) -->$", re.MULTILINE)
# In the text of --help: options, variables, URLs, assignments and fields.
CODE = re.compile(
    r"--[a-z][\w-]*(?: -?\d+)?|\b[A-Z]+(?:_[A-Z]+)+\b(?:=\S+\})?|https?://[\w.:@/]*\w|"
    r"[\w.-]+[:=][\w.]*\w(?:[:=,][\w.]*\w)*|\{\w+\}|'[^']+'|\bNAME\[\S+\]"
)


def expand(page: str) -> str:
    """Return *page* with each marker replaced by what it names.

    Raises:
        KeyError: the code does not have it.
    """
    return MARKER.sub(lambda found: _MAKERS[found[1]](found[2]), page)


def _option(name: str) -> str:
    option = {option.name: option for option in OPTIONS}[name]
    text, default = _text_and_default(option)
    value = f" {option.metavar}" if option.metavar else ""
    repeated = ", repeatable" if option.action == "append" else ""
    fields = [
        ("pytest", f"`{option.flag}{value}`{repeated}"),
        ("Configuration file", f"`{option.ini}`, {_KINDS[option.ini_type]}"),
    ]
    if option.environ:
        fields.append(("Environment", f"`{option.environ}`"))
    if not option.pytest_only:
        flag = option.flag.replace("--ollama-", "--")
        fields.append(
            ("ollama-warmup", f"`{flag} {option.command_metavar or option.metavar}`{repeated}")
        )
    if default:
        fields.append(("Default", default))
    lines = "\n".join(f":{name}: {value}" for name, value in fields)
    return f"{lines}\n\n{text}"


_KINDS = {
    "string": "a string",
    "bool": "true or false",
    "args": "a list of strings",
    "linelist": "a list of strings",
}


def _text_and_default(option: Option) -> tuple[str, str]:
    text, _, default = option.help.partition(" Default: ")
    default = default.removesuffix(".")
    shown = f"`{default}`" if re.fullmatch(r"\S+", default) else marked(default)
    if option.ini_type == "bool":
        shown = f"`off`: {shown}" if shown else "`off`"
    return marked(text), shown


def marked(text: str) -> str:
    """Return *text* of ``--help`` as Markdown: what is code stands in backticks."""
    return CODE.sub(lambda found: f"`{found[0].strip(chr(39))}`", text)


def _overview(group: str) -> str:
    rows = [
        f"| [`{option.flag}`](#{option.flag}) | `{option.ini}` "
        f"| {f'`{option.environ}`' if option.environ else ''} | {_short_default(option)} |"
        for option in OPTIONS
        if option.group == group
    ]
    return "\n".join(
        ["| option | configuration file | environment | default |", "|---|---|---|---|", *rows]
    )


def _short_default(option: Option) -> str:
    default = _text_and_default(option)[1]
    if option.ini_type == "bool":
        return "`off`"
    return default if len(default) < 60 else "see below"


def _help(command: str) -> str:
    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with redirect_stdout(out), suppress(SystemExit):
            main([*([command] if command else []), "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return f"```text\n{out.getvalue().rstrip()}\n```"


def _fixture(name: str) -> str:
    function = _function(FIXTURES, name)
    (decorator,) = (
        one for one in function.decorator_list if "fixture" in ast.unparse(one).split("(")[0]
    )
    scope = "function"
    if isinstance(decorator, ast.Call):
        scope = next(ast.literal_eval(k.value) for k in decorator.keywords if k.arg == "scope")
    returns = ast.unparse(function.returns) if function.returns else ""
    returns = re.sub(r"^Iterator\[(.*)\]$", r"\1", returns)
    return f":Scope: {scope}\n:Value: `{returns}`\n\n{_text_of(function)}"


def _hook(name: str) -> str:
    function = _function(HOOKS, name)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    signature = f"def {name}({ast.unparse(function.args)}){returns}: ..."
    return f"```python\n{signature}\n```\n\n{_text_of(function)}"


def _mark(name: str) -> str:
    from pytest_ollama_warmup.session import mark_names as marks

    signature, _, text = getattr(marks, f"{name}_HELP").partition(": ")
    return f"```python\n@pytest.mark.{signature}\n```\n\n{marked(text[:1].upper() + text[1:])}"


def _function(module: str, name: str) -> ast.FunctionDef:
    return {one.name: one for one in _functions(module)}[name]


def _functions(module: str) -> Iterator[ast.FunctionDef]:
    # Read, not imported: pytest hides the function of a fixture.
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    yield from (node for node in tree.body if isinstance(node, ast.FunctionDef))


def public_names(module: str) -> list[str]:
    """Return the fixtures or hooks that *module* defines, in its order."""
    return [
        function.name
        for function in _functions(module)
        if function.decorator_list and not function.name.startswith("_")
    ]


def _text_of(function: ast.FunctionDef) -> str:
    """Return a docstring as Markdown: a block after ``::`` is Python code."""
    text = ast.get_docstring(function) or ""
    parts = re.split(r"::\n\n((?:(?: {4}.*)?\n)*(?: {4}.*))", text)
    parts[::2] = [part.replace("``", "`") for part in parts[::2]]
    parts[1::2] = [f":\n\n```python\n{textwrap.dedent(code)}\n```" for code in parts[1::2]]
    return "".join(parts)


_MAKERS = {
    "option": _option,
    "overview": _overview,
    "help": _help,
    "fixture": _fixture,
    "hook": _hook,
    "mark": _mark,
}
