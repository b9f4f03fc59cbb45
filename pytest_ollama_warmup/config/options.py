"""One table of options: into the parsers of pytest and of the command line, and out of ini files.

This is part of every pytest run: a class that is written out, as a named tuple takes longer to make
than all rows together, and the readers of addresses and specs only where one is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, NoReturn

    import pytest

    from pytest_ollama_warmup.ollama.host import Host

PREFIX = "ollama_warmup_"
REPORT_SUFFIXES = (".html", ".md", ".json")


class Option:
    """A row: ``--ollama-NAME`` ↔ ini ``ollama_NAME`` (↔ an environment variable).

    *read* turns what a source holds into the value, and gets the source for its error; *default* is
    a value already. *pytest_only* rows mean nothing where there are no tests. The *command_* texts
    replace those of pytest in the help of ``ollama-warmup``. What is given for *secret* ones is not
    shown, unless it can be read so far that it is known what may be.
    """

    def __init__(
        self,
        name: str,
        group: str,
        help: str,
        read: Callable[[Any, str], Any],
        default: Any = None,
        metavar: str = "",
        ini_type: Literal["string", "args", "linelist", "bool"] = "string",
        action: str = "store",
        environ: str = "",
        pytest_only: bool = False,
        secret: bool = False,
        command_help: str = "",
        command_metavar: str = "",
    ) -> None:
        self.name, self.group, self.help = name, group, help
        self.read, self.default, self.metavar = read, default, metavar
        self.ini_type, self.action, self.environ = ini_type, action, environ
        self.pytest_only, self.secret = pytest_only, secret
        self.command_help, self.command_metavar = command_help, command_metavar
        self.flag = f"--ollama-{name.replace('_', '-')}"
        """The option on the command line."""
        self.dest = PREFIX + name
        """The attribute of pytest's option namespace."""
        self.ini = f"ollama_{name}"
        """The key in a configuration file."""


def _choice(*allowed: str) -> Callable[[Any, str], str]:
    def read(value: Any, source: str) -> str:
        if value not in allowed:
            _refuse(value, source, f"Valid values: {', '.join(allowed)}.")
        return str(value)

    return read


def _seconds(least: float) -> Callable[[Any, str], float]:
    def read(value: Any, source: str) -> float:
        from pytest_ollama_warmup.config.model_specs import read_seconds

        seconds = read_seconds(str(value))
        if seconds is None or not least <= seconds < math.inf:
            needed = f"Expected a duration such as 30, 30s or 1h30m, at least {least:g} s."
            _refuse(value, source, needed)
        return seconds

    return read


def _count(least: int) -> Callable[[Any, str], int]:
    def read(value: Any, source: str) -> int:
        text = str(value).strip()
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            _refuse(text, source, f"Expected a whole number, at least {least}.")
        return int(text)

    return read


def _refuse(value: object, source: str, needed: str) -> NoReturn:
    from pytest_ollama_warmup.errors import BadSetting

    raise BadSetting(str(value), source, needed)


def read_host(value: Any, source: str) -> Host:
    """Read an address as Ollama does.

    Raises:
        BadHost: no client could connect to it.
    """
    from pytest_ollama_warmup.ollama.host import parse_host

    return parse_host(str(value), source)


def read_hosts(value: Any, source: str) -> tuple[Host, ...]:
    """Read one address or several, separated by commas.

    Raises:
        BadHost: no client could connect to one of them.
    """
    from pytest_ollama_warmup.ollama.host import parse_hosts

    return parse_hosts(str(value), source)


def _duration(value: Any, source: str) -> float:
    from pytest_ollama_warmup.config.model_specs import parse_duration

    return parse_duration(str(value), source)


def _as_given(value: Any, source: str) -> Any:
    return value


OPTIONS = (
    Option(
        "preload",
        "what",
        "Pull and load these models before the tests: NAME[,KEY=VALUE...], separated by spaces. "
        "Repeat to add models; an empty value clears earlier ones. Default: OLLAMA_PRELOAD_MODELS.",
        read=_as_given,
        metavar="SPECS",
        ini_type="args",
        action="append",
        environ="OLLAMA_PRELOAD_MODELS",
        pytest_only=True,
    ),
    Option(
        "alias",
        "what",
        "Your own name for a model: chat=llama3.2:1b, or chat=llama3.2:1b,num_ctx=8192. Use it "
        "wherever a model name is expected. Repeat to add aliases.",
        read=_as_given,
        metavar="NAME=SPEC",
        ini_type="linelist",
        action="append",
        command_metavar="NAME=MODEL",
    ),
    Option(
        "pull",
        "what",
        "Which models to pull: auto (missing models that the command line or the environment "
        "lists; in CI also those that tests need), missing (any missing model), always (also "
        "update local models) or never. Default: auto.",
        read=_choice("auto", "missing", "always", "never"),
        default="auto",
        metavar="WHEN",
        command_help="Which models to pull: auto or missing (models that are not local), always "
        "(also update local models) or never. Default: auto.",
    ),
    Option(
        "on_unavailable",
        "what",
        "What to do if a model can't be made ready: exit (stop the run), fail or skip the tests "
        "that need it, or auto (exit if the command line lists it, otherwise fail in CI and skip "
        "elsewhere). Default: auto.",
        read=_choice("auto", "exit", "fail", "skip"),
        default="auto",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "ci",
        "what",
        "Whether this run counts as CI: yes, no or auto (yes if CI is set, or a variable of "
        "Jenkins, Azure Pipelines, TeamCity or AWS CodeBuild). In CI the plugin pulls any missing "
        "model, and tests whose model is unavailable fail. Default: auto.",
        read=_choice("auto", "yes", "no"),
        default="auto",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "off",
        "when",
        "Pull, load, skip and report nothing. The mark and the fixtures stay defined.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "warm",
        "when",
        "How to warm up models: load (load only), prompt (load, then generate a few tokens), off "
        "(pull only) or auto (prompt on Ollama before v0.30, otherwise load). Default: auto.",
        read=_choice("auto", "prompt", "load", "off"),
        default="auto",
        metavar="HOW",
    ),
    Option(
        "keep_alive",
        "when",
        "How long the server keeps models loaded after their last use: 600, 10m, 1h30m, or -1 for "
        "no limit. Never shortens a longer keep-alive. Default: 10m.",
        read=_duration,
        default=600.0,
        metavar="DURATION",
    ),
    Option(
        "unload",
        "when",
        "When the run ends, unload the models that it loaded, unless another run uses them. Models "
        "that were already loaded stay loaded. Default: all models stay loaded until their "
        "keep-alive ends, so that the next run starts fast.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "max_parallel",
        "when",
        "Run at most N tests that need models at a time on each server, counted over all "
        "pytest-xdist workers. Other tests that need models wait before they start, so the wait "
        "does not count towards their duration. Default: no limit.",
        read=_count(1),
        metavar="N",
        pytest_only=True,
    ),
    Option(
        "group_by_model",
        "when",
        "Group tests by the models that they need, so that each model is loaded once. All "
        "pytest-xdist workers run the same group at a time; tests that need no model fill the "
        "gaps.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "keep_order",
        "when",
        "Which tests stay in order when --ollama-group-by-model or --ollama-background reorders "
        "tests: module (tests of a module), class (tests of a class), test (none) or auto (tests "
        "of a class, and of a module that uses a mark such as dependency, order or incremental). "
        "Default: auto.",
        read=_choice("auto", "module", "class", "test"),
        default="auto",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "background",
        "when",
        "Pull and load models in the background while tests that need none run first. A test that "
        "needs a model waits for that model only.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "stall",
        "when",
        "Resume a pull that has received no data for this long. It fails after five attempts "
        "without data. Keep it below 30s: after 30 s the server retries by itself and discards "
        "what it had of the stalled part. Default: 25s.",
        read=_seconds(0.1),
        default=25.0,
        metavar="DURATION",
    ),
    Option(
        "load_timeout",
        "when",
        "Fail a load that takes longer than this, or a pull whose server sends no status for this "
        "long. Default: 15m.",
        read=_seconds(0.1),
        default=900.0,
        metavar="DURATION",
    ),
    Option(
        "host",
        "server",
        "Address of the Ollama server. Separate several with commas to spread the workers of "
        "pytest-xdist over them. Credentials (https://USER:PASSWORD@HOST) are sent but never "
        "shown. Default: OLLAMA_HOST, otherwise http://127.0.0.1:11434.",
        read=read_host,
        metavar="URL[,URL...]",
        environ="OLLAMA_HOST",
        secret=True,
        command_help="Address of the Ollama server. Credentials (https://USER:PASSWORD@HOST) are "
        "sent but never shown. Default: OLLAMA_HOST, otherwise http://127.0.0.1:11434.",
        command_metavar="URL",
    ),
    Option(
        "header",
        "server",
        "Send this header with each request, for a gateway in front of the server: 'X-API-Key: "
        "$GATEWAY_KEY' reads GATEWAY_KEY from the environment. Repeat to add headers; an empty "
        "value clears earlier ones.",
        read=_as_given,
        default=(),
        metavar="NAME: VALUE",
        ini_type="linelist",
        action="append",
        secret=True,
    ),
    Option(
        "export",
        "server",
        "Set another environment variable to the server's URL for the tests: OLLAMA_BASE_URL, or "
        "OPENAI_BASE_URL={openai_base_url}. Fields: {url}, {openai_base_url}, {scheme}, {host}, "
        "{port}. Repeat to add variables.",
        read=_as_given,
        default=(),
        metavar="NAME[=TEMPLATE]",
        ini_type="linelist",
        action="append",
        pytest_only=True,
    ),
    Option(
        "serve",
        "server",
        "Start a private Ollama server on a free port, with your models. It stops with the run, "
        "even if pytest is killed.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "serve_command",
        "server",
        "Command that --ollama-serve starts. Default: ollama serve.",
        read=_as_given,
        default="ollama serve",
        metavar="COMMAND",
        pytest_only=True,
    ),
    Option(
        "wait",
        "server",
        "How long to wait for the server to answer. Default: 60s if the command line lists "
        "models, with --ollama-serve and in CI; otherwise 2s, or 0.3s if a port of this machine "
        "refuses.",
        read=_seconds(0),
        metavar="DURATION",
    ),
    Option(
        "report",
        "report",
        "When the run ends, write a report to PATH: what each model cost, when each test ran and "
        "waited, and how to make it faster. PATH ends in .html (a page for people; needs the extra "
        "'html'), .md or .json. Repeat to write several; an empty value clears earlier ones.",
        read=_as_given,
        default=(),
        metavar="PATH",
        ini_type="linelist",
        action="append",
        pytest_only=True,
    ),
)
_GROUPS = {
    "what": "Ollama: which models, and what if they are missing",
    "when": "Ollama: when and how models are warmed",
    "server": "Ollama: the server",
    "report": "Ollama: reports",
}


def add_options(parser: pytest.Parser) -> None:
    """Add every row of the table to pytest's options and configuration keys."""
    for option in OPTIONS:
        group = parser.getgroup(f"ollama-{option.group}", _GROUPS[option.group])
        extra = {"metavar": option.metavar} if option.metavar else {}
        group.addoption(
            option.flag,
            action=option.action,
            dest=option.dest,
            default=None,
            help=option.help.replace("%", "%%"),
            **extra,
        )
        parser.addini(
            option.ini, f"Default value of {option.flag}.", type=option.ini_type, default=None
        )
