"""The command line outside pytest: ``ollama-warmup``, ``python -m pytest_ollama_warmup``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.errors import BadSetting, WarmupError
from pytest_ollama_warmup.options import OPTIONS, PREFIX, Option
from pytest_ollama_warmup.settings import Settings, Sources

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_SPECS = PREFIX + "preload"
_BRINGING = tuple(option.name for option in OPTIONS if not option.pytest_only)
_LOOKING = ("alias", "host", "header", "wait")
# Who looks wants to know how it is now, also in CI.
_WAIT_TO_LOOK = "2s"


class _Command(NamedTuple):
    """A command: what it does, which rows of the table of options it takes, how it ends."""

    text: str
    options: tuple[str, ...]
    end: str


_COMMANDS = {
    "preload": _Command(
        "Pull what is missing and load it, so that it is warm for whoever comes next. "
        "Without SPECS: the models of OLLAMA_PRELOAD_MODELS, else of OLLAMA_MODELS.",
        _BRINGING,
        "Nothing is unloaded: the lease stays (--keep-alive -1 for ever).\n"
        "exit codes: 0 all are ready, or none was named; 1 one or more failed; 2 bad usage; "
        "130 Ctrl-C",
    ),
    "pull": _Command(
        "Only download what is missing. "
        "Without SPECS: the models of OLLAMA_PRELOAD_MODELS and OLLAMA_MODELS together.",
        # A script that only downloads loads nothing, and leases nothing.
        tuple(name for name in _BRINGING if name not in ("warm", "keep_alive")),
        "exit codes: 0 all are there, or none was named; 1 one or more failed; 2 bad usage; "
        "130 Ctrl-C",
    ),
    "status": _Command(
        "Show which models are in memory, for how long, and whether those that are wanted are. "
        "Wanted are SPECS, else the models of OLLAMA_PRELOAD_MODELS, else of OLLAMA_MODELS.",
        _LOOKING,
        "One that has the context of another num_ctx counts as in memory; the table shows both.\n"
        "exit codes: 0 all that are wanted are in memory, or none is wanted; 1 one is not, or the "
        "server\ndoes not answer; 2 bad usage; 130 Ctrl-C",
    ),
    "unload": _Command(
        "Take models out of memory; they stay on the disk. "
        "Without SPECS and --all: the models of OLLAMA_PRELOAD_MODELS, else of OLLAMA_MODELS.",
        _LOOKING,
        "exit codes: 0 none of them is in memory any more; 1 one is still in use, or the server "
        "does not\nanswer; 2 bad usage, or none was named; 130 Ctrl-C",
    ),
    "cache-key": _Command(
        "Print a key under which a CI job can cache what these models download: one line, the same "
        "before and after the pull, on every machine, in any order and spelling of SPECS. Options "
        "like num_ctx do not change it, a pin (@sha256:...) does. No server is asked. "
        "Without SPECS: the models of OLLAMA_PRELOAD_MODELS and OLLAMA_MODELS together.",
        _LOOKING,
        "With --digests the key goes on with what the server has of each model now, so that a tag\n"
        "that moves is cached anew: save under that one, restore by the short one as a prefix\n"
        "(restore-keys of GitHub's actions/cache).\n"
        "exit codes: 0 the key is printed; 1 no digests to be had; 2 bad usage, or none was named",
    ),
    "demo": _Command(
        "Show the plugin at work on a small suite: cold tests against warm ones, two workers, and "
        "a model that is evicted between two tests. On your own Ollama, with the smallest model "
        "there that completes text; without one on an emulator, which every line with a figure "
        "then says. Nothing is downloaded. To show what cold is, the model is unloaded first; "
        "on another machine than this one only a model is taken that is not in memory.",
        ("host", "wait"),
        "exit codes: 0 all tests passed; 1 some did not, or what --host or --model names cannot "
        "be used;\n2 bad usage; 130 Ctrl-C",
    ),
}
_SPECS_EPILOG = """\
SPECS are like llama3.2:1b, hf.co/org/repo:Q4_K_M or llama3.2:1b,num_ctx=8192; several are
separated by spaces or commas. OLLAMA_MODELS is taken for a list unless it looks like a directory.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    specs, source = _specs(given, os.environ)
    setattr(given, _SPECS, specs)
    if given.command == "pull":
        given.ollama_warmup_warm = "off"
    try:
        settings = Settings.read(Sources(given, flag=_Flags(source), patient=True))
        if settings.problem is not None:
            raise settings.problem
        if misuse := _misuse(given, settings):
            print(f"{parser.prog} {given.command}: error: {misuse}", file=sys.stderr)
            return USAGE
        return READY if _run(given, settings) else FAILED
    except BadSetting as exc:
        print(f"{parser.prog}: error: {exc}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (| head): nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _misuse(given: argparse.Namespace, settings: Settings) -> str:
    """Say what is wrong with arguments that can each be read."""
    everything = given.command == "unload" and given.all
    if everything and given.specs:
        return "SPECS and --all: give one of them"
    if given.command in ("unload", "cache-key") and not (everything or settings.listed.specs):
        more = ", or --all for all that are in memory" if given.command == "unload" else ""
        return f"no model is named: name some, or list them in OLLAMA_PRELOAD_MODELS{more}"
    if given.command == "demo" and given.emulator and given.model is not None:
        return "--model and --emulator: give one of them"
    return ""


def _run(given: argparse.Namespace, settings: Settings) -> bool:
    # Imported here: --help and bad usage need no library.
    from pytest_ollama_warmup import commands

    try:
        match given.command:
            case "status":
                return commands.status(settings, as_json=given.json)
            case "unload":
                return commands.unload(settings, everything=given.all, as_json=given.json)
            case "cache-key":
                commands.cache_key(settings, digests=given.digests)
                return True
            case "demo":
                from pytest_ollama_warmup.demo import show

                return show(settings, model=given.model, emulator=given.emulator)
            case command:
                return commands.bring(command, settings, quiet=given.quiet, as_json=given.json)
    except BadSetting:
        raise
    except WarmupError as exc:
        print(f"ollama: {exc}", file=sys.stderr)
        if getattr(given, "json", False):
            # Whoever parses it finds a document there in any case.
            commands.print_json(settings, [], str(exc))
        return False


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
        epilog="'ollama-warmup COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="Show the version, and exit.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, command in _COMMANDS.items():
        parsers[name] = one = commands.add_parser(
            name,
            help=command.text.partition(". ")[0],
            description=textwrap.fill(command.text, 100),
            epilog=(_SPECS_EPILOG if name != "demo" else "") + command.end,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != "demo":
            one.add_argument("specs", nargs="*", metavar="SPECS", help="Models, with options.")
        for option in OPTIONS:
            if option.name in command.options:
                at_once = option.name == "wait" and "stall" not in command.options
                _add(one, option, default=_WAIT_TO_LOOK if at_once else None)
    for name in ("preload", "pull"):
        parsers[name].add_argument(
            "--json", action="store_true", help="Write what happened as JSON; progress to stderr."
        )
        parsers[name].add_argument(
            "-q", "--quiet", action="count", default=0, help="Less progress; twice: only failures."
        )
    for name in ("status", "unload"):
        parsers[name].add_argument("--json", action="store_true", help="Write it as JSON.")
    parsers["cache-key"].add_argument(
        "--digests", action="store_true", help="Ask the server, which must have all of them."
    )
    parsers["demo"].add_argument("--model", metavar="NAME", help="Another model that is there.")
    parsers["demo"].add_argument(
        "--emulator", action="store_true", help="On the emulator, also where there is an Ollama."
    )
    parsers["unload"].add_argument("--all", action="store_true", help="All that are in memory.")
    return parser


def _add(parser: argparse.ArgumentParser, option: Option, default: str | None) -> None:
    text = option.help
    if option.name == "wait":
        text = f"{text.partition(' Default:')[0]} Default: {default or '60s'}."
    parser.add_argument(
        _flag(option),
        # As pytest has it, so that a command can be copied from there.
        option.flag,
        action=option.action,
        dest=option.dest,
        default=default,
        help=text.replace("%", "%%"),
        metavar=option.metavar,
    )


def _specs(given: argparse.Namespace, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the texts that name models, and who gave them."""
    named = getattr(given, "specs", [])
    if named or given.command == "demo" or getattr(given, "all", False):
        return named, "the command line"
    found = {
        name: environ[name]
        for name in ("OLLAMA_PRELOAD_MODELS", "OLLAMA_MODELS")
        if environ.get(name, "").strip() and not _is_folder(environ[name])
    }
    # What is pulled, a cache holds.
    if given.command not in ("pull", "cache-key"):
        found = dict(list(found.items())[:1])
    return list(found.values()), " and ".join(found)


def _is_folder(text: str) -> bool:
    # What the server takes OLLAMA_MODELS for. A name may hold slashes, but begins with none.
    return re.match(r"\s*(?:[/~.\\]|[A-Za-z]:[\\/])", text) is not None
