"""The command line outside pytest: ``ollama-warmup``, ``python -m pytest_ollama_warmup``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.config.model_specs import ModelSpec, parse_specs
from pytest_ollama_warmup.config.options import OPTIONS, PREFIX, Option
from pytest_ollama_warmup.config.sources import Sources, from_variable, read_settings
from pytest_ollama_warmup.errors import BadSetting, WarmupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_ollama_warmup.config.settings import Settings

READY, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_SPECS = PREFIX + "preload"
_LOADING = tuple(option.name for option in OPTIONS if not option.pytest_only)
_ASKING = ("alias", "host", "header", "wait")
_WIDTH = 79
_PRELOADED = "the models of OLLAMA_PRELOAD_MODELS, otherwise those of OLLAMA_MODELS"
_PULLED = "the models of OLLAMA_PRELOAD_MODELS and of OLLAMA_MODELS"


class _Command(NamedTuple):
    """A command: its help, the options that it takes, and what it does without a model.

    The first sentence of *text* is its line in the list of commands.
    """

    text: str
    options: tuple[str, ...]
    exit_codes: str
    examples: tuple[str, str]
    models: str = ""
    alias: str = ""


_COMMANDS = {
    "preload": _Command(
        "Pull models that are missing, and load all of them. They stay loaded until their "
        "keep-alive ends; use --keep-alive -1 to keep them loaded.",
        _LOADING,
        "0 all models are ready; 1 a model or the server failed; 2 bad usage, or no model named; "
        "130 Ctrl-C",
        (
            "ollama-warmup preload llama3.2:1b nomic-embed-text",
            "ollama-warmup preload llama3.2:1b,num_ctx=8192 --keep-alive 1h",
        ),
        models=_PRELOADED,
    ),
    "pull": _Command(
        "Pull models that are missing, and load none.",
        tuple(name for name in _LOADING if name not in ("warm", "keep_alive")),
        "0 all models are local; 1 a model or the server failed; 2 bad usage, or no model named; "
        "130 Ctrl-C",
        (
            "ollama-warmup pull llama3.2:1b nomic-embed-text",
            "ollama-warmup pull llama3.2:1b --pull always --host gpu-box:11434",
        ),
        models=_PULLED,
    ),
    "status": _Command(
        "Show the loaded models, and check that the named ones are among them. "
        "A model that is loaded with another num_ctx counts as loaded; the table shows both.",
        _ASKING,
        "0 all named models are loaded; 1 a model is not loaded, or the server does not answer; "
        "2 bad usage, or no model named (the table is shown all the same); 130 Ctrl-C",
        (
            "ollama-warmup status llama3.2:1b",
            "ollama-warmup status llama3.2:1b --json",
        ),
        models=_PRELOADED,
        alias="ps",
    ),
    "unload": _Command(
        "Unload models from memory. They stay on disk.",
        _ASKING,
        "0 the models are not loaded (any more); 1 a model is unknown or still in use, or the "
        "server does not answer; 2 bad usage, or no model named; 130 Ctrl-C",
        (
            "ollama-warmup unload llama3.2:1b",
            "ollama-warmup unload --all",
        ),
        models=_PRELOADED,
        alias="stop",
    ),
    "cache-key": _Command(
        "Print a key under which a CI job can cache the named models. The key is the same on every "
        "machine, before and after the pull, and for any order of the models. A pinned digest "
        "(llama3.2:1b@sha256:...) changes it; options such as num_ctx do not. No server is needed. "
        "With --digests, a suffix follows that changes when the registry updates a tag: save the "
        "cache under the long key, and restore it by the short one as a prefix (restore-keys in "
        "GitHub's actions/cache).",
        _ASKING,
        "0 the key is printed; 1 --digests: a model is not local, or the server does not answer; "
        "2 bad usage, or no model named; 130 Ctrl-C",
        (
            "ollama-warmup cache-key llama3.2:1b nomic-embed-text",
            "ollama-warmup cache-key --digests llama3.2:1b",
        ),
        models=_PULLED,
    ),
    "demo": _Command(
        "Run a small test suite without and with the plugin, and show what changes. "
        "The demo uses the smallest local model that completes text, on your Ollama if it is "
        "running, otherwise on a private 'ollama serve' that stops with the demo. Without Ollama "
        "or a model it uses an emulator, and labels its figures. It downloads nothing. "
        "It unloads the model first, to show a cold start. On another machine it uses only a model "
        "that is not loaded.",
        ("host", "wait"),
        "0 all tests passed; 1 a test failed, or --host or --model cannot be used; 2 bad usage; "
        "130 Ctrl-C",
        (
            "ollama-warmup demo",
            "ollama-warmup demo --model llama3.2:1b",
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "pull":
        options.ollama_warmup_warm = "off"
    try:
        specs, source = _specs(options, os.environ)
        setattr(options, _SPECS, specs)
        settings = read_settings(Sources(options, flag=_Flags(source), patient=True))
        if _asks(_COMMANDS[options.command]):
            settings = settings.impatient()
        if settings.problem is not None:
            raise settings.problem
        misuse = _misuse(options, settings)
        done = True
        # "status" shows what is loaded even if there is nothing to check.
        if not misuse or options.command == "status":
            done = _run(options, settings)
        # Here, where it is known what to do if nobody reads it.
        sys.stdout.flush()
        if not done:
            return FAILED
        if misuse:
            print(f"{parser.prog} {options.typed}: error: {misuse}", file=sys.stderr)
            return USAGE
        return READY
    except BadSetting as exc:
        print(f"{parser.prog}: error: {exc}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (| head): nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _misuse(options: argparse.Namespace, settings: Settings) -> str:
    """Say what is wrong with arguments that can each be read."""
    everything = getattr(options, "all", False)
    if everything and options.specs:
        return "name models or use --all, not both."
    if options.command == "demo":
        both = options.emulator and options.model is not None
        return "use --model or --emulator, not both." if both else ""
    if everything or settings.listed.specs:
        return ""
    more = ", or use --all" if options.command == "unload" else ""
    return f"no model named. Name one or more, or list them in OLLAMA_PRELOAD_MODELS{more}."


def _run(options: argparse.Namespace, settings: Settings) -> bool:
    # Imported here: --help and bad usage need no library.
    from pytest_ollama_warmup.cli import commands

    try:
        match options.command:
            case "status":
                return commands.status(settings, as_json=options.json)
            case "unload":
                return commands.unload(settings, everything=options.all, as_json=options.json)
            case "cache-key":
                commands.cache_key(settings, digests=options.digests)
                return True
            case "demo":
                from pytest_ollama_warmup.cli.demo import show

                return show(settings, model=options.model, emulator=options.emulator).passed
            case command:
                return commands.make_ready(
                    command, settings, quiet=options.quiet, as_json=options.json
                )
    except BadSetting:
        raise
    except WarmupError as exc:
        text = str(exc).replace("\n", " ")
        print(f"ollama: {text}", file=sys.stderr)
        if getattr(options, "json", False):
            # Whoever parses it finds a document there, unless the command was misused.
            commands.print_json(settings, [], text)
        return False


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        # Imported here: it looks through all installed packages.
        from importlib.metadata import version

        print(f"pytest-ollama-warmup {version('pytest-ollama-warmup')}")
        parser.exit()


class _Flags:
    """Says where the value of an option comes from: its short flag, or who names the models."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __call__(self, option: Option) -> str:
        return self._source if option.name == "preload" else _flag(option)


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ollama-warmup",
        description="Pull and load Ollama models, as pytest --ollama-preload does, without pytest.",
        epilog="Run 'ollama-warmup COMMAND --help' for a command's options and examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="Show the version, and exit.")
    commands = parser.add_subparsers(dest="typed", required=True, metavar="COMMAND")
    parsers = {}
    for name, command in _COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            aliases=[command.alias] if command.alias else [],
            help=command.text.partition(". ")[0].removesuffix(".") + ".",
            description=textwrap.fill(command.text, _WIDTH),
            epilog=_epilog(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # What was typed may be the alias.
        parsers[name].set_defaults(command=name)
        _add_arguments(parsers[name], command)
    _add_switches(parsers)
    return parser


def _add_arguments(parser: argparse.ArgumentParser, command: _Command) -> None:
    """Add the models that *command* takes, and its rows of the table of options."""
    if command.models:
        parser.add_argument(
            "specs",
            nargs="*",
            metavar="MODEL",
            help="A name such as llama3.2:1b or hf.co/org/repo:Q4_K_M, with options after "
            f"commas: llama3.2:1b,num_ctx=8192. Default: {command.models}, unless that is a path.",
        )
    for option in OPTIONS:
        if option.name in command.options:
            _add(parser, option, asks=_asks(command))


def _asks(command: _Command) -> bool:
    """Whether it gives the server a short time only to answer: not the time that a start takes."""
    return "stall" not in command.options


def _add_switches(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add what only some commands take, and pytest does not."""
    for name in ("preload", "pull"):
        parsers[name].add_argument(
            "--json",
            action="store_true",
            help="Print the outcome as JSON to stdout, and progress to stderr.",
        )
        parsers[name].add_argument(
            "-q",
            "--quiet",
            action="count",
            default=0,
            help="Print less progress; -qq prints failures only.",
        )
    for name in ("status", "unload"):
        parsers[name].add_argument("--json", action="store_true", help="Print JSON.")
    parsers["cache-key"].add_argument(
        "--digests",
        action="store_true",
        help="Add a suffix made from the digests of the models, which must be local.",
    )
    parsers["demo"].add_argument(
        "--model", metavar="NAME", help="Use this local model instead of the smallest one."
    )
    parsers["demo"].add_argument(
        "--emulator", action="store_true", help="Use the emulator even if there is an Ollama."
    )
    parsers["unload"].add_argument("--all", action="store_true", help="Unload all loaded models.")


def _epilog(command: _Command) -> str:
    codes = textwrap.fill(
        f"Exit codes: {command.exit_codes}.", _WIDTH, subsequent_indent=" " * len("Exit codes: ")
    )
    return "\n".join([codes, "", "Examples:", *(f"  {example}" for example in command.examples)])


def _add(parser: argparse.ArgumentParser, option: Option, *, asks: bool) -> None:
    text = option.command_help or option.help
    if option.name == "wait":
        default = "2s, or 0.3s if a port of this machine refuses" if asks else "60s"
        text = f"{text.partition(' Default:')[0]} Default: {default}."
    parser.add_argument(
        _flag(option),
        # pytest's name of it works too, so that an option can be copied from there.
        option.flag,
        action=option.action,
        dest=option.dest,
        help=text.replace("%", "%%"),
        metavar=option.command_metavar or option.metavar,
    )


def _specs(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the texts that name models, and who gave them."""
    # "$UNSET" in a list clears nothing here.
    named = [text for text in getattr(options, "specs", []) if text.strip()]
    if named or options.command == "demo" or getattr(options, "all", False):
        return named, "the command line"
    found: dict[str, ModelSpec] = {}
    sources: list[str] = []
    for name in ("OLLAMA_PRELOAD_MODELS", "OLLAMA_MODELS"):
        texts = from_variable(environ.get(name, ""), name)
        specs = [] if _is_folder("".join(texts)) else parse_specs(texts, name)
        if specs:
            sources.append(name)
        for spec in specs:
            # Of a model in both the first one counts: options change no download.
            found.setdefault(spec.model_key, spec)
        # What is pulled, a cache holds.
        if found and options.command not in ("pull", "cache-key"):
            break
    return [str(spec) for spec in found.values()], " and ".join(sources)


def _is_folder(text: str) -> bool:
    # What the server takes OLLAMA_MODELS for. A name may hold slashes, but begins with none.
    return re.match(r"\s*(?:[/~.\\]|[A-Za-z]:[\\/])", text) is not None
