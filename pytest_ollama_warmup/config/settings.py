"""The settings of one run, each with its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.errors import BadHost, BadSetting

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.exports import Export
    from pytest_ollama_warmup.config.listed_models import GivenBy, Listed
    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.requests import Header
    from pytest_ollama_warmup.text import Secret

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
    """All settings of one run; *given_list* and the value of *given_host* may be None: not given.

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
    report: Setting[tuple[str, ...]]
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
        from pytest_ollama_warmup.config.listed_models import Listed

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
        host = next((server for server in self.hosts if server.url == url), None)
        return (
            self if host is None else self._replace(given_host=self.given_host._replace(value=host))
        )

    @property
    def terms(self) -> Terms:
        """On what terms models are prepared."""
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
            aliases=tuple(alias.name for alias in self.listed.aliases),
        )

    def impatient(self) -> Settings:
        """Return these for a command that gives the server a short time to answer, in CI too."""
        if self.wait.given_by != "default":
            return self
        return self._replace(wait=Setting(IMPATIENT_S, "default", "default"))

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
        from pytest_ollama_warmup.text import origin

        listed = self.listed
        names = " ".join(str(spec) for spec in listed.specs)
        what = f", preload {names} (from {listed.source})" if listed.specs else ""
        return f"{self.addresses} ({origin(self.host.source)}){what}"

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
        keys = any(
            setting.given_by == "configuration" for setting in self if isinstance(setting, Setting)
        )
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
        """Whether the listed models are prepared in every run, before collection."""
        if self.given_list is None:
            return False
        given_by = self.given_list.given_by
        # An outer run has prepared what the environment lists already.
        prepares = given_by == "option" or (given_by == "environment" and not self.inner)
        bad_list = given_by == "environment" and self.problem is not None
        return prepares and (bool(self.given_list.specs) or bad_list)
