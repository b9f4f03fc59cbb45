"""One table of options: into the parsers of pytest and of the command line, and out of ini files.

This is part of every pytest run: named tuples, which cost a sixth of a dataclass to make, and the
readers of addresses and specs only where one is given.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ollama_warmup.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pytest_ollama_warmup.ollama.host import Host

PREFIX = "ollama_warmup_"


class Option(NamedTuple):
    """A row: ``--ollama-NAME`` ↔ ini ``ollama_NAME`` (↔ an environment variable).

    *read* turns what a source holds into the value, and gets the source for its error; *default* is
    a value already. *pytest_only* rows mean nothing where there are no tests. What is given for
    *secret* ones is not shown, unless it can be read so far that it is known what may be.
    """

    name: str
    group: str
    help: str
    read: Callable[[Any, str], Any]
    default: Any = None
    metavar: str = ""
    ini_type: Literal["string", "args", "linelist", "bool", "float"] = "string"
    action: str = "store"
    environ: str = ""
    ini_only: bool = False
    pytest_only: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--ollama-{self.name.replace('_', '-')}"

    @property
    def dest(self) -> str:
        """The attribute of pytest's option namespace."""
        return PREFIX + self.name

    @property
    def ini(self) -> str:
        """The key in a configuration file."""
        return f"ollama_{self.name}"


def _choice(*allowed: str) -> Callable[[Any, str], str]:
    def read(value: Any, source: str) -> str:
        if value not in allowed:
            raise BadSetting(str(value), source, f"Valid values: {', '.join(allowed)}.")
        return str(value)

    return read


def _number(least: float) -> Callable[[Any, str], float]:
    def read(value: Any, source: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            raise BadSetting(
                str(value), source, f"A number of seconds is needed, at least {least:g}."
            )
        return number

    return read


def _count(least: int) -> Callable[[Any, str], int]:
    def read(value: Any, source: str) -> int:
        text = str(value).strip()
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise BadSetting(text, source, f"A whole number is needed, at least {least}.")
        return int(text)

    return read


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
    from pytest_ollama_warmup.warmup.spec import parse_duration

    return parse_duration(str(value), source)


def _as_given(value: Any, source: str) -> Any:
    return value


OPTIONS = (
    Option(
        "preload",
        "what",
        "Pull and load the models SPECS before the tests: NAME[,KEY=VALUE...], several separated "
        "by spaces. May be given more than once; an empty one lists nothing.",
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
        "A name of your own for a model: chat=llama3.2:1b, or chat=llama3.2:1b,num_ctx=8192. It "
        "can stand wherever a model can. May be given more than once.",
        read=_as_given,
        metavar="NAME=SPEC",
        ini_type="linelist",
        action="append",
    ),
    Option(
        "pull",
        "what",
        "What may be downloaded: auto (models listed on the command line or in the environment, "
        "and any wanted model in CI), missing (any wanted model), always (refresh "
        "present ones too) or never. Default: auto.",
        read=_choice("auto", "missing", "always", "never"),
        default="auto",
        metavar="WHEN",
    ),
    Option(
        "on_missing",
        "what",
        "What a model that cannot be made ready does: exit (end the run), fail or skip the tests "
        "that need it, or auto (exit when listed on the command line, else fail in CI "
        "and skip elsewhere). Default: auto.",
        read=_choice("auto", "exit", "fail", "skip"),
        default="auto",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "ci",
        "what",
        "Whether this is a run in CI, where missing models fail and wanted ones are downloaded: "
        "yes, no, or auto (if CI is set, or a variable of Jenkins, Azure Pipelines, TeamCity or "
        "AWS CodeBuild). Default: auto.",
        read=_choice("auto", "yes", "no"),
        default="auto",
        metavar="WHAT",
    ),
    Option(
        "off",
        "when",
        "Do nothing in this run: tests run as if the plugin were not installed.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "warm",
        "when",
        "How models are warmed: load (nothing is generated), prompt (one short generation), auto "
        "(prompt for servers before v0.30, which do not warm up by themselves, else load) or off "
        "(present is enough). Default: auto.",
        read=_choice("auto", "prompt", "load", "off"),
        default="auto",
        metavar="HOW",
    ),
    Option(
        "keep_alive",
        "when",
        "How long the server keeps models loaded after their last use: seconds, 10m, 1h30m, or -1 "
        "for ever. Never shortens a longer lease. Default: 10m.",
        read=_duration,
        default=600.0,
        metavar="DURATION",
    ),
    Option(
        "at_end",
        "when",
        "What becomes of models that this run has loaded: keep (until their lease ends, so that "
        "the next run finds them) or unload. Those that it found loaded stay. Default: keep.",
        read=_choice("keep", "unload"),
        default="keep",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "slots",
        "when",
        "How many tests that need models may run at once on each server, over all workers of "
        "pytest-xdist; the others wait outside of their own time. Default: all.",
        read=_count(1),
        metavar="N",
        pytest_only=True,
    ),
    Option(
        "group_by_model",
        "when",
        "Run the tests of one set of models after those of another, so that each is loaded once; "
        "also over all workers of pytest-xdist, where tests that need no model fill the gaps.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "keep_order",
        "when",
        "Which tests stay together in the order in which they are collected, where "
        "--ollama-group-by-model or --ollama-overlap reorders tests: module, class, test (none), "
        "or auto (those of a class, and those of a module with a mark such as dependency, order or "
        "incremental). Default: auto.",
        read=_choice("auto", "module", "class", "test"),
        default="auto",
        metavar="WHAT",
        pytest_only=True,
    ),
    Option(
        "overlap",
        "when",
        "Bring the models in the background while the tests run that need none; those that need "
        "one come later, and wait for their own.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "stall",
        "when",
        "Seconds without a new byte after which a pull is dropped and resumed; five resumptions "
        "without one fail it. Above 30 the server's own retry comes first, which throws away what "
        "the stalled part had. Default: 25.",
        read=_number(0.1),
        default=25.0,
        ini_type="float",
        ini_only=True,
    ),
    Option(
        "load_timeout",
        "when",
        "Seconds after which a load, or a pull without a word from the server, fails. "
        "Default: 900.",
        read=_number(0.1),
        default=900.0,
        ini_type="float",
        ini_only=True,
    ),
    Option(
        "host",
        "server",
        "Address of the Ollama server. Default: OLLAMA_HOST, else http://127.0.0.1:11434. In "
        "pytest several, separated by commas: workers of pytest-xdist are spread over them. A user "
        "and password before the host (https://USER:PASSWORD@HOST) are sent, and never shown.",
        read=read_host,
        metavar="URL[,URL...]",
        environ="OLLAMA_HOST",
        secret=True,
    ),
    Option(
        "header",
        "server",
        "A header for each request to the server, for a gateway before it that wants one: "
        "'X-API-Key: $GATEWAY_KEY', where $GATEWAY_KEY is read from the environment. May be given "
        "more than once; an empty one drops those before it.",
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
        "Another environment variable that is set to the server's URL for the tests, or to what "
        "TEMPLATE says: OLLAMA_BASE_URL, or OPENAI_BASE_URL={openai_url}. Fields: {url}, "
        "{openai_url}, {scheme}, {host}, {port}. May be given more than once.",
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
        "Start a server of this run's own, on a free port and with the user's models; it ends with "
        "the run, whatever ends that.",
        read=_as_given,
        default=False,
        ini_type="bool",
        action="store_true",
        pytest_only=True,
    ),
    Option(
        "serve_command",
        "server",
        "What --ollama-serve starts. Default: ollama serve.",
        read=_as_given,
        default="ollama serve",
        metavar="COMMAND",
        pytest_only=True,
    ),
    Option(
        "wait",
        "server",
        "How long the server may take to answer. Default: 60 outside pytest, when models are "
        "listed on the command line, for a server of the run's own, and in CI; else 2.",
        read=_number(0),
        metavar="SECONDS",
        ini_type="float",
    ),
)
_GROUPS = {
    "what": "Ollama: which models, and what if they are missing",
    "when": "Ollama: when and how models are warmed",
    "server": "Ollama: the server",
}


def add_options(parser: pytest.Parser) -> None:
    """Add every row of the table to pytest's options and configuration keys."""
    for option in OPTIONS:
        if not option.ini_only:
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
            option.ini,
            option.help if option.ini_only else f"Default value of {option.flag}.",
            type=option.ini_type,
            default=None,
        )


def from_ini(config: pytest.Config, options: object, option: Option) -> tuple[Any, str]:
    """Return what pytest's configuration holds for *option*, None for nothing, and its name there.

    *options* is the namespace that may override the file (``-o``).

    Raises:
        BadSetting: a value of another type.
    """
    import pytest

    overrides = getattr(options, "override_ini", None) or ()
    if any(str(one).partition("=")[0].strip() == option.ini for one in overrides):
        source = f"-o {option.ini}"
    else:
        path = config.inipath
        source = f"{option.ini} in {path.name if path else 'the configuration file'}"
    try:
        return config.getini(option.ini), source
    # pytest 8.4 lets ValueError through, 9.2 makes it a UsageError without key or file.
    except (pytest.UsageError, ValueError, TypeError) as exc:
        given = "***" if option.secret else _given(exc)
        raise BadSetting(given, source, needed_type(option)) from None


def needed_type(option: Option) -> str:
    """Say what a configuration file has to hold for *option*."""
    return NEEDED_TYPES.get(option.name, NEEDED_TYPES[option.ini_type])


NEEDED_TYPES = {
    "header": 'A list of texts is needed, like ["X-API-Key: $GATEWAY_KEY"].',
    "export": 'A list of texts is needed, like ["OLLAMA_BASE_URL"].',
    "args": 'A list of texts is needed, like ["llama3.2:1b"].',
    "linelist": 'A list of texts is needed, like ["chat=llama3.2:1b"].',
    "bool": "true or false is needed.",
    "float": "A number of seconds is needed.",
    "string": 'A text is needed; in TOML write it in quotes, like "10m".',
}


def _given(exc: Exception) -> str:
    # The value as pytest quotes it at the end of its message, without the file's path before it.
    text = str(exc)
    quoted = re.search(r"'([^']*)'$", text)
    return quoted[1] if quoted else text.rpartition(": ")[2]
