"""One table of options, and the settings that a run reads from it, each with its source.

This is part of every pytest run: named tuples, which cost a sixth of a dataclass to make, and the
readers of addresses and specs only where one is given.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import pytest

from pytest_ollama_warmup.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.warmup.plan import GivenBy, Listed

T = TypeVar("T")
PREFIX = "ollama_warmup_"
# A run inside a test of this run finds this in its environment.
OUTER_RUN = "PYTEST_OLLAMA_WARMUP_RUN"


class Option(NamedTuple):
    """A row: ``--ollama-NAME`` ↔ ini ``ollama_NAME`` (↔ an environment variable).

    *read* turns what a source holds into the value, and gets the source for its error; *default* is
    a value already.
    """

    name: str
    group: str
    help: str
    read: Callable[[Any, str], Any]
    default: Any = None
    metavar: str = ""
    ini_type: Literal["string", "args", "bool", "float"] = "string"
    action: str = "store"
    environ: str = ""
    ini_only: bool = False

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


def _host(value: Any, source: str) -> Host:
    from pytest_ollama_warmup.ollama.host import parse_host

    return parse_host(str(value), source)


def _duration(value: Any, source: str) -> float:
    from pytest_ollama_warmup.warmup.spec import parse_duration

    return parse_duration(str(value), source)


def _as_given(value: Any, source: str) -> Any:
    return value


OPTIONS = (
    Option(
        "preload",
        "what",
        "Pull and load the models SPECS before the tests: NAME[,KEY=VALUE...], several parted by "
        "spaces. May be given more than once; an empty one lists nothing.",
        read=_as_given,
        metavar="SPECS",
        ini_type="args",
        action="append",
        environ="OLLAMA_PRELOAD_MODELS",
    ),
    Option(
        "pull",
        "what",
        "What may be downloaded: auto (models listed on the command line or in the environment, "
        "and any wanted model when CI is set), missing (any wanted model), always (refresh "
        "present ones too) or never. Default: auto.",
        read=_choice("auto", "missing", "always", "never"),
        default="auto",
        metavar="WHEN",
    ),
    Option(
        "on_missing",
        "what",
        "What a model that cannot be made ready does: exit (end the run), fail or skip the tests "
        "that need it, or auto (exit when listed on the command line, else fail when CI is set "
        "and skip elsewhere). Default: auto.",
        read=_choice("auto", "exit", "fail", "skip"),
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
    ),
    Option(
        "warm",
        "when",
        "How models are warmed: prompt (one short generation), load, or off (present is enough). "
        "Default: prompt.",
        read=_choice("prompt", "load", "off"),
        default="prompt",
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
        "load_timeout",
        "when",
        "Seconds after which a load, or a pull without a new byte, fails. Default: 900.",
        read=_number(0.1),
        default=900.0,
        ini_type="float",
        ini_only=True,
    ),
    Option(
        "host",
        "server",
        "Address of the Ollama server. Default: OLLAMA_HOST, else http://127.0.0.1:11434.",
        read=_host,
        metavar="URL",
        environ="OLLAMA_HOST",
    ),
    Option(
        "wait",
        "server",
        "How long the server may take to answer. Default: 60 when models are listed on the "
        "command line or CI is set, else 2.",
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


class Setting(NamedTuple, Generic[T]):
    """A value and who gave it."""

    value: T
    source: str
    given_by: GivenBy


class Settings(NamedTuple):
    """All settings of one run; *given_list* and *given_host* are None where nobody gave any.

    What the environment holds and cannot be used waits in *problem* until a model is wanted: the
    variables are other programs' too.
    """

    given_list: Listed | None
    given_host: Setting[Host | None]
    problem: BadSetting | None
    off: bool
    pull: Setting[str]
    on_missing: Setting[str]
    warm: Setting[str]
    keep_alive: Setting[float]
    wait: Setting[float]
    load_timeout: Setting[float]
    ci: bool
    api_key: str
    inner: bool

    @property
    def listed(self) -> Listed:
        """The models that are listed for the run."""
        from pytest_ollama_warmup.warmup.plan import Listed

        return self.given_list or Listed()

    @property
    def host(self) -> Host:
        """The address of the server."""
        return self.given_host.value or _host("127.0.0.1:11434", "default")

    @property
    def in_use(self) -> bool:
        """Whether the user has set anything up for Ollama in this run, beside marks."""
        listed = self.given_list is not None and bool(self.given_list.specs)
        return listed or self.given_host.given_by in ("option", "configuration")

    @property
    def up_front(self) -> bool:
        """Whether the listed models are brought in every run, before collection."""
        if self.given_list is None:
            return False
        given_by = self.given_list.given_by
        # An outer run has brought what the environment lists already.
        brings = given_by == "option" or (given_by == "environment" and not self.inner)
        bad_list = given_by == "environment" and self.problem is not None
        return brings and (bool(self.given_list.specs) or bad_list)

    @classmethod
    def from_config(
        cls,
        config: pytest.Config,
        options: object | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Read option, then environment, then configuration file; the first one set wins.

        *options* is the namespace to read where ``config.option`` is not final yet.

        Raises:
            pytest.UsageError: a value cannot be used; names it, its source and what is allowed.
        """
        read = _Reader(config, options or config.option, environ)
        try:
            off, ci = bool(read.setting("off").value), is_set(environ.get("CI"))
            read.lenient = off
            listed, host = read.listed(), read.setting("host")
            wait = read.setting("wait")
            if wait.value is None:
                by_option = listed is not None and listed.given_by == "option"
                patient = ci or (by_option and bool(listed and listed.specs))
                wait = Setting(60.0 if patient else 2.0, "default", "default")
            return cls(
                given_list=listed,
                given_host=host,
                problem=read.problem,
                off=off,
                pull=read.setting("pull"),
                on_missing=read.setting("on_missing"),
                warm=read.setting("warm"),
                keep_alive=read.setting("keep_alive"),
                wait=wait,
                load_timeout=read.setting("load_timeout"),
                ci=ci,
                api_key=environ.get("OLLAMA_API_KEY", "").strip(),
                inner=OUTER_RUN in environ,
            )
        except BadSetting as exc:
            raise pytest.UsageError(str(exc)) from None


def is_set(value: str | None) -> bool:
    """Whether a switch in the environment is on: not empty, ``0`` or ``false``."""
    return (value or "").strip().lower() not in ("", "0", "false")


def set_environment(config: pytest.Config, name: str, value: str) -> None:
    """Set an environment variable for the run; what was there comes back at its end."""
    before = os.environ.get(name)

    def restore() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    os.environ[name] = value
    config.add_cleanup(restore)


class _Reader:
    """Finds which source gives an option."""

    def __init__(self, config: pytest.Config, options: object, environ: Mapping[str, str]) -> None:
        self._config, self._options, self._environ = config, options, environ
        self._table = {option.name: option for option in OPTIONS}
        self.problem: BadSetting | None = None
        self.lenient = False
        """Whether bad values count as not given: what is off has nothing to complain about."""

    def setting(self, name: str) -> Setting[Any]:
        option = self._table[name]
        raw, source, given_by = self._raw(option)
        if given_by != "default":
            try:
                return Setting(option.read(raw, source), source, given_by)
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        return Setting(option.default, "default", "default")

    def listed(self) -> Listed | None:
        raw, source, given_by = self._raw(self._table["preload"])
        if given_by == "default":
            return None
        from pytest_ollama_warmup.warmup.plan import Listed
        from pytest_ollama_warmup.warmup.spec import parse_specs

        texts = [raw] if isinstance(raw, str) else list(raw)
        try:
            if not all(isinstance(text, str) for text in texts):
                raise BadSetting(str(raw), source, _NEEDED["args"])
            if given_by == "configuration":
                # pytest has split it at white space; "a, num_ctx=512" is one spec all the same.
                texts = [" ".join(texts)]
            empty = [index for index, text in enumerate(texts) if not text.strip()]
            # An empty value clears what came before it, so that it also overrides addopts.
            if given_by == "option" and empty:
                texts = texts[empty[-1] + 1 :]
            return Listed(parse_specs(texts, source), source, given_by)
        except BadSetting as exc:
            self._tolerate(exc, given_by)
            return Listed((), source, given_by)

    def _tolerate(self, exc: BadSetting, given_by: GivenBy) -> None:
        if given_by == "environment":
            self.problem = exc
        elif not self.lenient:
            raise exc

    def _raw(self, option: Option) -> tuple[Any, str, GivenBy]:
        given = getattr(self._options, option.dest, None)
        if given is not None:
            return given, option.flag, "option"
        if option.environ and self._environ.get(option.environ, "").strip():
            return self._environ[option.environ], option.environ, "environment"
        ini, source = self._ini(option)
        if ini is not None and not (option.ini_type == "string" and not str(ini).strip()):
            return ini, source, "configuration"
        return option.default, "default", "default"

    def _ini(self, option: Option) -> tuple[Any, str]:
        overrides = getattr(self._options, "override_ini", None) or ()
        if any(str(one).partition("=")[0].strip() == option.ini for one in overrides):
            source = f"-o {option.ini}"
        else:
            path = self._config.inipath
            source = f"{option.ini} in {path.name if path else 'the configuration file'}"
        try:
            return self._config.getini(option.ini), source
        # pytest 8.4 lets ValueError through, 9.2 makes it a UsageError without key or file.
        except (pytest.UsageError, ValueError, TypeError) as exc:
            if self.lenient:
                return None, source
            raise BadSetting(_given(exc), source, _NEEDED[option.ini_type]) from None


_NEEDED = {
    "args": 'A list of texts is needed, like ["llama3.2:1b"].',
    "bool": "true or false is needed.",
    "float": "A number of seconds is needed.",
    "string": 'A text is needed; in TOML write it in quotes, like "10m".',
}


def _given(exc: Exception) -> str:
    # The value as pytest quotes it at the end of its message, without the file's path before it.
    text = str(exc)
    quoted = re.search(r"'([^']*)'$", text)
    return quoted[1] if quoted else text.rpartition(": ")[2]
