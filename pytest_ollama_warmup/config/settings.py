"""The settings that a run reads from the table of options, each with its source."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pytest_ollama_warmup.config.options import (
    NEEDED_TYPES,
    OPTIONS,
    Option,
    needed_type,
    read_host,
    read_hosts,
)
from pytest_ollama_warmup.errors import BadHost, BadSetting, BadSpec, Conflict, MissingVariable
from pytest_ollama_warmup.text import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ollama_warmup.config.exports import Export
    from pytest_ollama_warmup.config.listed import Alias, GivenBy, Listed
    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.requests import Header

T = TypeVar("T")
# How long a server may take to answer, by default: where models are listed or in CI, and elsewhere.
PATIENT_S, IMPATIENT_S = 60.0, 2.0
# How long a port of this machine may refuse then: as long as a server needs that is restarted.
REFUSED_S = 0.3
# GitHub, GitLab and most others set the first; Jenkins, Azure Pipelines, TeamCity, AWS CodeBuild.
CI_VARIABLES = (
    "CI",
    "BUILD_NUMBER",
    "TF_BUILD",
    "TEAMCITY_VERSION",
    "CODEBUILD_BUILD_ID",
    "JENKINS_URL",
)
# A run inside a test of this run finds this in its environment.
OUTER_RUN = "PYTEST_OLLAMA_WARMUP_RUN"
# The workers of a run with a server of its own find its address here; so do runs in its tests.
OWN_SERVER = "PYTEST_OLLAMA_WARMUP_SERVER"


class Setting(NamedTuple, Generic[T]):
    """A value and who gave it."""

    value: T
    source: str
    given_by: GivenBy


class Sources(NamedTuple):
    """Where values come from; the first that holds one wins.

    *options* is a namespace with the ``dest`` of each option, *flag* says what the user typed.
    *ini* returns what a configuration file holds for an option, None for nothing, and its name.
    *patient* is whether bringing models is all that the process is there for; then there is one
    server. *place* is what ``Place`` wrote for a worker that uses one of several.
    """

    options: object
    environ: Mapping[str, str] = os.environ
    flag: Callable[[Option], str] = lambda option: option.flag
    ini: Callable[[Option], tuple[Any, str]] = lambda option: (None, "")
    patient: bool = False
    place: str = ""


class Place(NamedTuple):
    """A worker's number, from 0 on, and the server that it begins with, for its environment."""

    number: int
    url: str

    def __str__(self) -> str:
        return f"{self.number} {self.url}"

    @classmethod
    def read(cls, text: str) -> Place | None:
        """Read what ``str`` gave; None where it is something else."""
        number, _, url = text.partition(" ")
        return cls(int(number), url) if number.isdigit() and url else None


class Settings(NamedTuple):
    """All settings of one run; *given_list* and *given_host* are None where nobody gave any.

    *hosts* are the addresses as given, *given_host* is the one that this process uses; a worker
    that uses one of several has its *number*.
    What the environment holds and cannot be used waits in *problem* until a model is wanted: the
    variables are other programs' too. So does an address, whoever gives it.
    """

    given_list: Listed | None
    given_host: Setting[Host | None]
    hosts: tuple[Host, ...]
    number: int | None
    problem: BadSetting | None
    off: bool
    pull: Setting[str]
    on_unavailable: Setting[str]
    warm: Setting[str]
    keep_alive: Setting[float]
    unload: Setting[bool]
    max_parallel: Setting[int | None]
    group_by_model: Setting[bool]
    keep_order: Setting[str]
    background: Setting[bool]
    serve: Setting[bool]
    serve_command: Setting[str]
    headers: Setting[tuple[Header, ...]]
    exports: Setting[tuple[Export, ...]]
    wait: Setting[float]
    stall: Setting[float]
    load_timeout: Setting[float]
    ci: bool
    ci_source: str
    """What decides about *ci*: a variable, or the option; empty where nothing is set."""
    api_key: Secret
    inner: bool
    served: bool
    """Whether a run around this one, or the controller of this worker, has started its server."""

    @property
    def listed(self) -> Listed:
        """The models that are listed for the run."""
        from pytest_ollama_warmup.config.listed import Listed

        return self.given_list or Listed()

    @property
    def host(self) -> Host:
        """The address of the server."""
        return self.given_host.value or read_host("127.0.0.1:11434", "default")

    @property
    def pool(self) -> tuple[Host, ...]:
        """The hosts over which workers are spread: one at least, which is that of all."""
        if len(self.hosts) < 2:
            return (self.host,)
        from pytest_ollama_warmup.ollama.host import distinct

        hosts = distinct(self.hosts)
        return hosts if len(hosts) > 1 else (self.host,)

    @property
    def several_hosts(self) -> bool:
        """Whether the run may use more than one host."""
        return len(self.pool) > 1

    @property
    def addresses(self) -> str:
        """All servers of the run, for a message."""
        return ", ".join(host.url for host in self.pool)

    def on(self, host: Host) -> Settings:
        """Return these settings with another server, which the suite itself names."""
        return self._replace(given_host=Setting(host, host.source, "configuration"), hosts=())

    def at_address(self, text: str, source: str) -> Settings:
        """Return these settings with the server that OLLAMA_HOST names by now.

        A value that cannot be used waits in *problem*, as any of the environment.
        """
        try:
            host = read_host(text, source)
        except BadSetting as exc:
            return self._replace(problem=exc)
        own = isinstance(self.problem, BadHost)
        return self._replace(
            given_host=Setting(host, source, "environment"),
            hosts=(host,),
            problem=None if own else self.problem,
        )

    def moved(self, url: str) -> Settings:
        """Return these settings with another one of several servers."""
        host = next((one for one in self.hosts if one.url == url), None)
        return (
            self if host is None else self._replace(given_host=self.given_host._replace(value=host))
        )

    @property
    def terms(self) -> Terms:
        """On what terms models are brought."""
        from pytest_ollama_warmup.config.terms import Terms

        return Terms(
            pull=self.pull.value,
            warm=self.warm.value,
            keep_alive_s=self.keep_alive.value,
            keep_alive_asked=self.keep_alive.given_by != "default",
            # A service manager starts a crashed server again, after 3 s by Ollama's unit file.
            comes_back_s=(
                max(self.wait.value, 10.0) if self.wait.given_by == "default" else self.wait.value
            ),
            stall_s=self.stall.value,
            load_timeout_s=self.load_timeout.value,
            ci=self.ci,
        )

    @property
    def refused_s(self) -> float:
        """How long the server's port may refuse connections, in seconds.

        Without Ollama on a laptop each run with a marked test waits for so long.
        """
        brief = self.wait.given_by == "default" and self.wait.value == IMPATIENT_S
        return REFUSED_S if brief and self.host.loopback else self.wait.value

    @property
    def ci_variable(self) -> str:
        """The variable by which this counts as a run in CI; empty where nothing or an option does.

        IDEs and development containers set one too, for users who do not expect what follows.
        """
        return self.ci_source if self.ci_source in CI_VARIABLES else ""

    @property
    def decided_by_ci(self) -> str:
        """The variable that makes tests fail or ends the run; empty where an option does."""
        return self.ci_variable if self.on_unavailable.value == "auto" else ""

    @property
    def ci_words(self) -> str:
        """Why this counts as a run in CI, or why not."""
        if self.ci_variable:
            return f"{self.ci_variable} is set"
        return f"from {self.ci_source}" if self.ci_source else "CI not set"

    @property
    def title(self) -> str:
        """Where the server is and what is listed, each with its source."""
        listed = self.listed
        names = " ".join(str(spec) for spec in listed.specs)
        what = f", preload {names} (from {listed.source})" if listed.specs else ""
        return f"{self.addresses} (from {self.host.source}){what}"

    @property
    def chooses_host(self) -> bool:
        """Whether the address comes from the run itself, not from OLLAMA_HOST or the default."""
        return self.given_host.given_by in ("option", "configuration")

    @property
    def lists(self) -> bool:
        """Whether any models are listed, wherever that is."""
        return bool(self.given_list and self.given_list.specs)

    @property
    def configured(self) -> bool:
        """Whether the suite or the user speaks of models, of a server, or by a key of a file.

        What only says how, such as ``--ollama-wait`` for all jobs of CI, is no word about a suite.
        """
        keys = any(one.given_by == "configuration" for one in self if isinstance(one, Setting))
        server = "option" in (self.given_host.given_by, self.serve.given_by)
        return self.given_list is not None or server or keys

    @property
    def preloads(self) -> bool:
        """Whether the command line or the environment lists models, maybe for an outer run."""
        listed = self.given_list
        return bool(listed and listed.specs and listed.given_by in ("option", "environment"))

    @property
    def reorders(self) -> bool:
        """Whether tests run in another order than they are collected in."""
        return bool(self.group_by_model.value or self.background.value)

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
    def read(cls, sources: Sources) -> Settings:
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
        listed, problem = read.listed(), read.problem
        hosts, serve = read.hosts(), read.setting("serve")
        if serve.value and not off:
            serve, hosts = _served(serve, hosts, environ)
            if serve.value:
                # What OLLAMA_HOST holds is not used then.
                read.problem = problem
        wait = read.setting("wait")
        if wait.value is None:
            by_option = listed is not None and listed.given_by == "option"
            patient = sources.patient or ci or (by_option and bool(listed and listed.specs))
            patient = patient or (serve.value and not off)
            wait = Setting(PATIENT_S if patient else IMPATIENT_S, "default", "default")
        settings = cls(
            given_list=listed,
            given_host=Setting(next(iter(hosts.value), None), hosts.source, hosts.given_by),
            hosts=hosts.value,
            number=place.number if place else None,
            problem=None,
            off=off,
            pull=read.setting("pull"),
            on_unavailable=read.setting("on_unavailable"),
            warm=read.setting("warm"),
            keep_alive=read.setting("keep_alive"),
            unload=read.setting("unload"),
            max_parallel=read.setting("max_parallel"),
            group_by_model=read.setting("group_by_model"),
            keep_order=read.setting("keep_order"),
            background=read.setting("background"),
            serve=serve,
            serve_command=read.setting("serve_command"),
            headers=read.headers(),
            exports=read.exports(),
            wait=wait,
            stall=read.setting("stall"),
            load_timeout=read.setting("load_timeout"),
            ci=ci,
            ci_source=ci_source,
            api_key=Secret(environ.get("OLLAMA_API_KEY", "").strip()),
            inner=OUTER_RUN in environ,
            served=OWN_SERVER in environ,
        )
        # Whichever of them had one.
        settings = settings._replace(problem=read.problem)
        return settings.moved(place.url) if place else settings


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


def _in_ci(given: Setting[str], environ: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether this is a run in CI, and who says so."""
    if given.value != "auto":
        return given.value == "yes", given.source
    if is_set(environ.get("CI")):
        return True, "CI"
    # The numbers and addresses of the others are no switches.
    found = next((name for name in CI_VARIABLES[1:] if environ.get(name, "").strip()), "")
    return bool(found), found


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
                found = read_hosts(raw, source) if several else (read_host(raw, source),)
                return Setting(found, source, given_by)
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
                found = read_headers(texts, source, self._sources.environ)
                return Setting(found, source, given_by)
            except MissingVariable as exc:
                self.problem = self.problem or exc
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        return Setting((), "default", "default")

    def exports(self) -> Setting[tuple[Export, ...]]:
        """Return the variables to set; of two with one name that of the first source."""
        option, first = self._table["export"], None
        found: dict[str, Export] = {}
        for raw, source, given_by in self._given(option):
            from pytest_ollama_warmup.config.exports import parse_export

            first = first or (source, given_by)
            try:
                exports = [parse_export(text, source) for text in _texts(raw, source, option)]
            except BadSetting as exc:
                self._tolerate(exc, given_by)
            else:
                found = {one.name: one for one in exports} | found
        return Setting(tuple(found.values()), *(first or ("default", "default")))

    def listed(self) -> Listed | None:
        """Return the listed models and the aliases; None where nobody gave any."""
        aliases = self._aliases()
        given = next(iter(self._given(self._table["preload"])), None)
        if given is None and not aliases:
            return None
        from pytest_ollama_warmup.config.listed import Listed
        from pytest_ollama_warmup.config.spec import distinct, parse_specs

        if given is None:
            return Listed(aliases=aliases)
        raw, source, given_by = given
        try:
            texts = _texts(raw, source)
            if given_by == "environment":
                texts = _from_variable(texts[0], source)
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
        found: dict[str, Alias] = {}
        for raw, source, given_by in self._given(self._table["alias"]):
            from pytest_ollama_warmup.config.listed import parse_aliases

            try:
                for alias in parse_aliases(_texts(raw, source), source, given_by):
                    found.setdefault(alias.key, alias)
            except BadSetting as exc:
                self._tolerate(exc, given_by)
        for alias in found.values():
            other = found.get(alias.spec.name.lower(), alias)
            if other is not alias:
                raise BadSpec(str(alias.spec), alias.source, f"{other.name} is an alias itself")
        return tuple(found.values())

    def _tolerate(self, exc: BadSetting, given_by: GivenBy) -> None:
        if given_by == "environment":
            self.problem = exc
        elif not self.lenient:
            raise exc

    def _given(self, option: Option) -> list[tuple[Any, str, GivenBy]]:
        """Return what each source gives for *option*, the one that wins first."""
        sources, found = self._sources, list[tuple[Any, str, "GivenBy"]]()
        given = getattr(sources.options, option.dest, None)
        # An empty address is that of a variable that is not set.
        if given is not None and not (option.name == "host" and not str(given).strip()):
            found.append((given, sources.flag(option), "option"))
        if option.environ and sources.environ.get(option.environ, "").strip():
            found.append((sources.environ[option.environ], option.environ, "environment"))
        # Only these add up: what wins already need not be read from the file.
        if not found or option.name in ("alias", "export"):
            try:
                ini, source = sources.ini(option)
            except BadSetting:
                if not self.lenient:
                    raise
                return found
            if ini is not None and not (option.ini_type == "string" and not str(ini).strip()):
                found.append((ini, source, "configuration"))
        return found


def _from_variable(text: str, source: str) -> list[str]:
    """Return the specs in a variable: without quotes that an env file has left, or a JSON list."""
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
