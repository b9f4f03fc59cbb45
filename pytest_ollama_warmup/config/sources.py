"""Read the settings from command line, environment and configuration file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.config.ini import NEEDED_TYPES, needed_type
from pytest_ollama_warmup.config.options import (
    OPTIONS,
    REPORT_SUFFIXES,
    Option,
    read_host,
    read_hosts,
)
from pytest_ollama_warmup.config.settings import (
    CI_VARIABLES,
    IMPATIENT_S,
    OUTER_RUN,
    OWN_SERVER,
    PATIENT_S,
    Place,
    Setting,
    Settings,
)
from pytest_ollama_warmup.errors import BadSetting, BadSpec, Conflict, MissingVariable
from pytest_ollama_warmup.text import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ollama_warmup.config.exports import Export
    from pytest_ollama_warmup.config.listed_models import Alias, GivenBy, Listed
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.requests import Header


class Sources(NamedTuple):
    """Where values come from; the first that holds one wins.

    *options* is a namespace with the ``dest`` of each option, *flag* says what the user typed.
    *ini* returns what a configuration file holds for an option, None for nothing, and its name.
    *patient* is whether preparing models is all that the process is there for; then there is one
    server. *place* is what ``Place`` wrote for a worker that uses one of several.
    """

    options: object
    environ: Mapping[str, str] = os.environ
    flag: Callable[[Option], str] = lambda option: option.flag
    ini: Callable[[Option], tuple[Any, str]] = lambda option: (None, "")
    patient: bool = False
    place: str = ""


def read_settings(sources: Sources) -> Settings:
    """Read option, then environment, then configuration file; the first one set wins.

    Raises:
        BadSetting: a value cannot be used; names it, its source and what is allowed.
    """
    place = Place.read(sources.place)
    if place:
        # The controller has set OLLAMA_HOST: it would win over the file that names the host.
        others = {k: v for k, v in sources.environ.items() if k != "OLLAMA_HOST"}
        sources = sources._replace(environ=others)
    read, environ = _Reader(sources), sources.environ
    off = read.lenient = bool(read.setting("off").value)
    ci, ci_source = _in_ci(read.setting("ci"), environ)
    listed = read.listed()
    serve, hosts = _server(read, environ, off)
    settings = Settings(
        given_list=listed,
        given_host=Setting(next(iter(hosts.value), None), hosts.source, hosts.given_by),
        hosts=hosts.value,
        number=place.number if place else None,
        problem=None,
        off=off,
        serve=serve,
        headers=read.headers(),
        exports=read.exports(),
        report=read.reports(),
        wait=_wait(read, listed, patient=sources.patient or ci or (serve.value and not off)),
        ci=ci,
        ci_source=ci_source,
        api_key=Secret(environ.get("OLLAMA_API_KEY", "").strip()),
        inner=OUTER_RUN in environ,
        served=OWN_SERVER in environ,
        **{name: read.setting(name) for name in _PLAIN},
    )
    # Whichever of them had one.
    settings = settings._replace(problem=read.problem)
    return settings.moved(place.url) if place else settings


# The settings that are what the table of options reads, and nothing more.
_PLAIN = (
    "pull",
    "on_unavailable",
    "warm",
    "keep_alive",
    "unload",
    "max_parallel",
    "group_by_model",
    "keep_order",
    "background",
    "serve_command",
    "stall",
    "load_timeout",
)


def _server(
    read: _Reader, environ: Mapping[str, str], off: bool
) -> tuple[Setting[bool], Setting[tuple[Host, ...]]]:
    """Return whether the run has a server of its own, and where the servers are."""
    problem = read.problem
    hosts, serve = read.hosts(), read.setting("serve")
    if serve.value and not off:
        serve, hosts = _served(serve, hosts, environ)
        if serve.value:
            # What OLLAMA_HOST holds is not used then.
            read.problem = problem
    return serve, hosts


def _wait(read: _Reader, listed: Listed | None, *, patient: bool) -> Setting[float]:
    """Return how long the server may take to answer; *patient* without models on the line too."""
    wait = read.setting("wait")
    if wait.value is not None:
        return wait
    by_option = listed is not None and listed.given_by == "option" and bool(listed.specs)
    return Setting(PATIENT_S if patient or by_option else IMPATIENT_S, "default", "default")


def _served(
    serve: Setting[bool], hosts: Setting[tuple[Host, ...]], environ: Mapping[str, str]
) -> tuple[Setting[bool], Setting[tuple[Host, ...]]]:
    """Return whether the run has a server of its own, and where; what is given closer by wins.

    Raises:
        Conflict: another server is asked for in the same place.
    """
    order: tuple[GivenBy, ...] = ("option", "environment", "configuration", "default")
    if hosts.given_by == serve.given_by:
        raise Conflict(serve.source, hosts.source, "starts a server of its own")
    if order.index(hosts.given_by) < order.index(serve.given_by):
        return serve._replace(value=False), hosts
    url = environ.get(OWN_SERVER, "")
    if not url:
        from pytest_ollama_warmup.ollama.process import free_port

        url = f"http://127.0.0.1:{free_port()}"
    host = read_host(url, serve.source)
    return serve, Setting((host,), serve.source, serve.given_by)


def _in_ci(setting: Setting[str], environ: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether this is a run in CI, and who says so."""
    if setting.value != "auto":
        return setting.value == "yes", setting.source
    if is_set(environ.get("CI")):
        return True, "CI"
    # The numbers and addresses of the others are no switches.
    variable = next((name for name in CI_VARIABLES[1:] if environ.get(name, "").strip()), "")
    return bool(variable), variable


def is_set(value: str | None) -> bool:
    """Whether a switch in the environment is on: not empty, ``0`` or ``false``."""
    return (value or "").strip().lower() not in ("", "0", "false")


class _Reader:
    """Finds which source gives an option."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._table = {option.name: option for option in OPTIONS}
        self.problem: BadSetting | None = None
        self.lenient = False
        """Whether bad values count as not given: what is off has nothing to complain about."""

    def setting(self, name: str) -> Setting[Any]:
        option = self._table[name]
        for raw, source, given_by in self._given(option)[:1]:
            try:
                return Setting(option.read(raw, source), source, given_by)
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        return Setting(option.default, "default", "default")

    def hosts(self) -> Setting[tuple[Host, ...]]:
        """Return the servers; several are a matter of pytest, and none of OLLAMA_HOST."""
        for raw, source, given_by in self._given(self._table["host"])[:1]:
            several = given_by != "environment" and not self._sources.patient
            try:
                hosts = read_hosts(raw, source) if several else (read_host(raw, source),)
                return Setting(hosts, source, given_by)
            except BadSetting as exc:
                self.problem = exc
                if given_by != "environment":
                    return Setting((), source, given_by)
        return Setting((), "default", "default")

    def headers(self) -> Setting[tuple[Header, ...]]:
        """Return the user's own headers; they matter only where a request is sent."""
        option = self._table["header"]
        for raw, source, given_by in self._given(option)[:1]:
            from pytest_ollama_warmup.ollama.requests import read_headers

            try:
                # An empty one clears what came before it, so that it also overrides addopts.
                texts = _after_empty(_texts(raw, source, option))
                headers = read_headers(texts, source, self._sources.environ)
                return Setting(headers, source, given_by)
            except MissingVariable as exc:
                self.problem = self.problem or exc
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        return Setting((), "default", "default")

    def exports(self) -> Setting[tuple[Export, ...]]:
        """Return the variables to set; of two with one name that of the first source."""
        option, first = self._table["export"], None
        variables: dict[str, Export] = {}
        for raw, source, given_by in self._given(option):
            from pytest_ollama_warmup.config.exports import parse_export

            first = first or (source, given_by)
            try:
                exports = [parse_export(text, source) for text in _texts(raw, source, option)]
            except BadSetting as exc:
                self._tolerate(exc, given_by)
            else:
                variables = {export.name: export for export in exports} | variables
        return Setting(tuple(variables.values()), *(first or ("default", "default")))

    def reports(self) -> Setting[tuple[str, ...]]:
        """Return the files to write reports to; an empty one clears those before it."""
        option = self._table["report"]
        for raw, source, given_by in self._given(option)[:1]:
            try:
                paths = _after_empty(_texts(raw, source, option))
                for path in paths:
                    if not path.lower().endswith(REPORT_SUFFIXES):
                        needed = f"Expected a file name that ends in {', '.join(REPORT_SUFFIXES)}."
                        raise BadSetting(path, source, needed)
            except BadSetting as exc:
                self._tolerate(exc, given_by)
            else:
                return Setting(tuple(dict.fromkeys(paths)), source, given_by)
        return Setting((), "default", "default")

    def listed(self) -> Listed | None:
        """Return the listed models and the aliases; None where nobody gave any."""
        aliases = self._aliases()
        preload = next(iter(self._given(self._table["preload"])), None)
        if preload is None and not aliases:
            return None
        from pytest_ollama_warmup.config.listed_models import Listed
        from pytest_ollama_warmup.config.model_specs import distinct, parse_specs

        if preload is None:
            return Listed(aliases=aliases)
        raw, source, given_by = preload
        try:
            texts = _texts(raw, source)
            if given_by == "environment":
                texts = from_variable(texts[0], source)
            if given_by == "configuration":
                # pytest has split it at white space; "a, num_ctx=512" is one spec all the same.
                texts = [" ".join(texts)]
            # An empty value clears what came before it, so that it also overrides addopts.
            if given_by == "option":
                texts = _after_empty(texts)
            named = Listed(aliases=aliases)
            specs = [named.meant(spec) for spec in parse_specs(texts, source)]
            return Listed(distinct(specs, source), source, given_by, aliases)
        except BadSetting as exc:
            self._tolerate(exc, given_by)
            return Listed((), source, given_by, aliases)

    def _aliases(self) -> tuple[Alias, ...]:
        """Return the aliases of all sources; of two with one name the first source's."""
        aliases: dict[str, Alias] = {}
        for raw, source, given_by in self._given(self._table["alias"]):
            from pytest_ollama_warmup.config.listed_models import parse_aliases

            try:
                for alias in parse_aliases(_texts(raw, source), source, given_by):
                    aliases.setdefault(alias.key, alias)
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        for alias in aliases.values():
            other = aliases.get(alias.spec.name.lower(), alias)
            if other is not alias:
                why = f"{other.name} is an alias itself"
                self._tolerate(BadSpec(str(alias.spec), alias.source, why), alias.given_by)
        return tuple(aliases.values())

    def _tolerate(self, exc: BadSetting, given_by: GivenBy) -> None:
        if given_by == "environment":
            self.problem = exc
        elif not self.lenient:
            raise exc

    def _given(self, option: Option) -> list[tuple[Any, str, GivenBy]]:
        """Return what each source gives for *option*, the one that wins first."""
        sources, values = self._sources, list[tuple[Any, str, "GivenBy"]]()
        argument = getattr(sources.options, option.dest, None)
        # An empty address is that of a variable that is not set.
        if argument is not None and not (option.name == "host" and not str(argument).strip()):
            values.append((argument, sources.flag(option), "option"))
        if option.environ and sources.environ.get(option.environ, "").strip():
            values.append((sources.environ[option.environ], option.environ, "environment"))
        # Only these add up: what wins already need not be read from the file.
        if not values or option.name in ("alias", "export"):
            try:
                ini, source = sources.ini(option)
            except BadSetting:
                if not self.lenient:
                    raise
                return values
            if ini is not None and not (option.ini_type == "string" and not str(ini).strip()):
                values.append((ini, source, "configuration"))
        return values


def from_variable(text: str, source: str) -> list[str]:
    """Return the specs in a variable: without quotes that an env file has left, or a JSON list.

    Raises:
        BadSetting: the list is none of texts.
    """
    text = text.strip()
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):
        text = text[1:-1]
    if not text.startswith("["):
        return [text]
    try:
        return _texts(json.loads(text), source)
    except ValueError:
        raise BadSetting(text, source, NEEDED_TYPES["args"]) from None


def _texts(raw: Any, source: str, option: Option | None = None) -> list[str]:
    texts = [raw] if isinstance(raw, str) else list(raw)
    if not all(isinstance(text, str) for text in texts):
        shown = "***" if option and option.secret else str(raw)
        needed = needed_type(option) if option else NEEDED_TYPES["args"]
        raise BadSetting(shown, source, needed)
    return texts


def _after_empty(texts: list[str]) -> list[str]:
    """Return those of *texts* that come after the last empty one."""
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    return texts[empty[-1] + 1 :] if empty else texts
