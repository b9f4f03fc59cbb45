"""The command line outside pytest: ``ollama-warmup``, ``python -m pytest_ollama_warmup``."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import BadSetting
from pytest_ollama_warmup.options import OPTIONS, PREFIX, Option
from pytest_ollama_warmup.settings import Settings, Sources

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from pytest_ollama_warmup.report.terminal import Screen

READY, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_SPECS = PREFIX + "preload"
# A script that only downloads loads nothing, and leases nothing.
_NOT_FOR_PULL = ("warm", "keep_alive")
_COMMANDS = {
    "preload": "Pull what is missing and load it, so that it is warm for whoever comes next. "
    "Without SPECS: the models of OLLAMA_PRELOAD_MODELS, else of OLLAMA_MODELS.",
    "pull": "Only download what is missing. "
    "Without SPECS: the models of OLLAMA_PRELOAD_MODELS and OLLAMA_MODELS together.",
}
_EPILOG = """\
SPECS are like llama3.2:1b, hf.co/org/repo:Q4_K_M or llama3.2:1b,num_ctx=8192; several are parted by
spaces or commas. OLLAMA_MODELS is taken for a list unless it looks like a directory. Nothing is
unloaded: the lease stays (--keep-alive -1 for ever).

exit codes: 0 all are ready, or none was named; 1 one or more failed; 2 bad usage; 130 Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    specs, source = _specs(given.command, given.specs, os.environ)
    setattr(given, _SPECS, specs)
    if given.command == "pull":
        given.ollama_warmup_warm = "off"
    try:
        settings = Settings.read(Sources(given, flag=_Flags(source), patient=True))
        if settings.problem is not None:
            raise settings.problem
    except BadSetting as exc:
        print(f"{parser.prog}: error: {exc}", file=sys.stderr)
        return USAGE
    out = sys.stderr if given.json else sys.stdout
    try:
        return _bring(given.command, settings, out, quiet=given.quiet, as_json=given.json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (| head): nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _bring(command: str, settings: Settings, out: TextIO, *, quiet: int, as_json: bool) -> int:
    # Imported here: --help and bad usage need neither.
    from pytest_ollama_warmup.preloading import bring_listed
    from pytest_ollama_warmup.report.terminal import can_write_signs, summary_lines
    from pytest_ollama_warmup.warmup.record import Record

    screen, record = _screen(out, quiet), Record()
    if settings.listed.specs:
        screen.say(settings.title.replace(", preload ", f", {command} ", 1))
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
            print(line, file=out)
    return FAILED if record.failed else READY


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        # Imported here: it looks through all installed packages.
        from importlib.metadata import version

        print(f"pytest-ollama-warmup {version('pytest-ollama-warmup')}")
        parser.exit()


class _Flags:
    """Says what the user typed for an option, as messages show it."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __call__(self, option: Option) -> str:
        return self._source if option.name == "preload" else _flag(option)


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ollama-warmup",
        description="Make Ollama models ready before anything needs them: the work that "
        "pytest --ollama-preload does, without pytest.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="Show the version, and exit.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text.partition(". ")[0],
            description=text,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument("specs", nargs="*", metavar="SPECS", help="Models, with options.")
        for option in OPTIONS:
            if not (option.pytest_only or (name == "pull" and option.name in _NOT_FOR_PULL)):
                _add(command, option)
        command.add_argument(
            "--json", action="store_true", help="Write what happened as JSON; progress to stderr."
        )
        command.add_argument(
            "-q", "--quiet", action="count", default=0, help="Less progress; twice: only failures."
        )
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    parser.add_argument(
        _flag(option),
        # As pytest has it, so that a command can be copied from there.
        *([] if option.ini_only else [option.flag]),
        action=option.action,
        dest=option.dest,
        default=None,
        help=option.help.replace("%", "%%"),
        metavar=option.metavar or "SECONDS",
    )


def _specs(command: str, named: list[str], environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the texts that name models, and who gave them."""
    if named:
        return named, "the command line"
    found = {
        name: environ[name]
        for name in ("OLLAMA_PRELOAD_MODELS", "OLLAMA_MODELS")
        if environ.get(name, "").strip() and not _is_folder(environ[name])
    }
    if command == "preload":
        found = dict(list(found.items())[:1])
    return list(found.values()), " and ".join(found)


def _is_folder(text: str) -> bool:
    # What the server takes OLLAMA_MODELS for. A name may hold slashes, but begins with none.
    return re.match(r"\s*(?:[/~.\\]|[A-Za-z]:[\\/])", text) is not None


def _screen(out: TextIO, quiet: int) -> Screen:
    from pytest_ollama_warmup.report.terminal import Screen

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
