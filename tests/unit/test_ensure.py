"""Pull, check and load one model; all models side by side."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_ollama_warmup.config.model_specs import parse_specs
from pytest_ollama_warmup.config.terms import Terms
from pytest_ollama_warmup.errors import (
    AccessDenied,
    ApiError,
    PullFailed,
    ServerUnreachable,
    WaitedTooLong,
)
from pytest_ollama_warmup.ollama.causes import api_error
from pytest_ollama_warmup.ollama.host import Host
from pytest_ollama_warmup.ollama.responses import LoadedModel, LocalModel, ModelInfo, PullProgress
from pytest_ollama_warmup.warmup import ensure as bring_module
from pytest_ollama_warmup.warmup import job as work_module
from pytest_ollama_warmup.warmup import load as load_module
from pytest_ollama_warmup.warmup import pull as pull_module
from pytest_ollama_warmup.warmup import user_directory
from pytest_ollama_warmup.warmup.ensure import ensure_pulled, ensure_warm
from pytest_ollama_warmup.warmup.job import Event, Say, Work
from pytest_ollama_warmup.warmup.locks import held
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import Target
from pytest_ollama_warmup.warmup.preloader import PULLS_SIDE_BY_SIDE, Preloader, Threads
from pytest_ollama_warmup.warmup.record import Record
from pytest_ollama_warmup.warmup.turns import Turns
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path
from tests.sections import unnamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_ollama_warmup.config.listed_models import GivenBy
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.requests import LoadKind
    from pytest_ollama_warmup.warmup.warmer import Warmer

HOST = Host("http://h:1", "--ollama-host")
CHAT = ModelInfo(("completion", "tools"), "")
EMBED = ModelInfo(("embedding",), "")
UNKNOWN = ModelInfo(None, "")
SUCCESS = PullProgress("success")
BUSY = api_error("/api/generate", 503, "server busy, please try again.")
NO_TEXT = api_error("/api/generate", 400, '"m" does not support generate')
CENTURIES = 292 * 365 * 86400.0


def ensure(
    client: Client,
    target: Target,
    terms: Terms,
    *,
    by: str,
    say: Say = lambda event: None,
    heartbeat: Callable[[], None] = lambda: None,
    pulls: threading.Semaphore | None = None,
) -> Outcome:
    """Pull and load one model in one process, as a warmer does."""
    work = Work(client, target, terms, say, heartbeat, pulls or threading.Semaphore(1))
    pulled = ensure_pulled(work, by)
    if not pulled.ready:
        return pulled
    return ensure_warm(Work(client, target, terms, say, heartbeat, work.pulls), pulled, by)


class Server:
    """A client of a scripted server: each list holds its next answers, the last one stays.

    *before* is what is in memory before the first load, *loaded_models* what is after it. What it
    does not *show*, it does not list. An exception in a list is raised. All requests are kept in
    *asked*.
    """

    host = HOST

    def __init__(
        self,
        *,
        show: Sequence[ModelInfo | Exception | None] = (CHAT,),
        pull: Sequence[Sequence[PullProgress | Exception]] = (),
        load: Sequence[Exception | None] = (None,),
        loaded_models: Sequence[list[LoadedModel] | Exception] = ([],),
        before: list[LoadedModel] | None = None,
        stored: Sequence[list[LocalModel] | Exception] = (
            [LocalModel("m:latest", "0a109f4200", 7)],
        ),
    ) -> None:
        self._show, self._pull, self._stored = list(show), list(pull), list(stored)
        self._load, self._loaded_models, self._before = (
            list(load),
            list(loaded_models),
            before or [],
        )
        self.asked: list[str] = []
        self.loads: list[dict[str, Any]] = []
        self.pulls: list[tuple[str, bool, float]] = []

    def show(self, name: str, *, limit_s: float) -> ModelInfo | None:
        self.asked.append("show")
        return cast("ModelInfo | None", self._next(self._show))

    def pull(self, name: str, *, insecure: bool, silence_s: float) -> Iterator[PullProgress]:
        self.asked.append("pull")
        self.pulls.append((name, insecure, silence_s))
        for line in self._next(self._pull):
            if isinstance(line, Exception):
                raise line
            yield line

    def load(self, name: str, kind: LoadKind, **arguments: Any) -> None:
        self.asked.append(kind)
        self.loads.append({"name": name, "kind": kind, **arguments})
        self._next(self._load)

    def wait_until_ready(self, limit_s: float) -> str:
        self.asked.append("version")
        return "0.33.0"

    def local_models(self, *, limit_s: float) -> list[LocalModel]:
        self.asked.append("tags")
        models = cast("list[LocalModel]", self._next(self._stored))
        unknown = self._show[0] is None
        return [model for model in models if not (unknown and model.name == "m:latest")]

    def loaded_models(self) -> list[LoadedModel]:
        self.asked.append("ps")
        if not self.loads:
            return self._before
        return cast("list[LoadedModel]", self._next(self._loaded_models))

    @staticmethod
    def _next(answers: list[Any]) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def as_client(server: Server) -> Client:
    return cast("Client", server)


def target(text: str = "m", given_by: GivenBy = "option") -> Target:
    (spec,) = parse_specs(text, "x")
    return Target(spec, "from --ollama-preload", given_by)


def prepared(
    server: Server, text: str = "m", *, given_by: GivenBy = "option", **terms: Any
) -> Outcome:
    return ensure(as_client(server), target(text, given_by), Terms(**terms), by="main")


def loaded_for(seconds: float | None, name: str = "m:latest") -> list[LoadedModel]:
    return [LoadedModel("other:1b", "00", 1, 1, 5.0), LoadedModel(name, "ab", 7, 4096, seconds)]


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another session of these tests would work on the same model of the same host.
    monkeypatch.setattr(user_directory, "user_folder", lambda: tmp_path)


class Clock:
    """The time that bringing reads; passes only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (bring_module, load_module, pull_module, work_module):
        monkeypatch.setattr(module, "clock", made)
    return made


# Present or not, and what may be downloaded


def test_a_model_that_is_there_is_not_pulled_but_loaded() -> None:
    server = Server(loaded_models=[loaded_for(600)])
    outcome = prepared(server, "m,num_ctx=64")
    assert ["tags", "show", "ps", "generate", "ps"] == server.asked
    assert outcome.ready
    assert ("main", "m", (("num_ctx", 64),)) == (outcome.by, outcome.model, outcome.options)
    assert ("0a109f4200", 7, 4096) == (outcome.digest, outcome.size, outcome.context_length)
    assert ("completion", "tools") == outcome.capabilities
    assert ["load"] == [step.kind for step in outcome.steps]
    assert target("m,num_ctx=64").key == outcome.key


@pytest.mark.parametrize(
    ("pull", "given_by", "ci", "allowed"),
    [
        ("auto", "option", False, True),
        ("auto", "environment", False, True),
        ("auto", "configuration", False, False),
        ("auto", "default", False, False),
        ("auto", "configuration", True, True),
        ("auto", "default", True, True),
        ("missing", "default", False, True),
        ("missing", "option", False, True),
        ("always", "default", False, True),
        ("never", "option", True, False),
        ("never", "default", True, False),
    ],
)
def test_nothing_is_downloaded_by_surprise(
    pull: str, given_by: GivenBy, ci: bool, allowed: bool
) -> None:
    server = Server(show=[None, CHAT], pull=[[SUCCESS]])
    outcome = prepared(server, given_by=given_by, pull=pull, ci=ci)
    assert allowed is ("pull" in server.asked)
    assert allowed is outcome.ready
    if not allowed:
        forbidden = pull == "never"
        assert (
            f"m (from --ollama-preload) is not pulled{', by --ollama-pull=never' if forbidden else ''}."
            f"\nRun 'ollama pull m'{'' if forbidden else ', or pytest with --ollama-pull=missing'}; "
            "for an alias add --ollama-alias m=MODEL."
        ) == unnamed(outcome.error)
        assert "not pulled" == outcome.brief
        # The list tells what the name may have been meant for.
        assert ["tags", "show", "tags"] == server.asked


def test_a_pull_is_looked_at_again_before_the_load() -> None:
    server = Server(show=[None, CHAT], pull=[[SUCCESS]])
    assert prepared(server, "m,insecure=true", load_timeout_s=70).ready
    assert ["tags", "show", "pull", "show", "tags", "ps", "generate", "ps"] == server.asked
    assert [("m", True, 70)] == server.pulls


def test_a_model_that_another_run_has_pulled_meanwhile_is_not_pulled_again() -> None:
    server, waiting, told = Server(show=[None, CHAT]), threading.Event(), list[str]()

    def say(event: Event) -> None:
        told.append(event.phase)
        if event.phase == "waiting":
            waiting.set()

    with ThreadPoolExecutor(1) as pool:
        with held(shared_lock_path("pull", HOST.url, target().spec.model_key), "the other run", 60):
            outcome = pool.submit(ensure, as_client(server), target(), Terms(), by="main", say=say)
            assert waiting.wait(30)
        assert outcome.result(30).ready
    assert ["tags", "show", "show", "tags", "ps", "generate", "ps"] == server.asked
    assert ["checking", "queued", "waiting", "present", "loading"] == told


@pytest.mark.parametrize(
    ("text", "terms"),
    [("m", {}), ("m", {"pull": "missing"}), ("m,num_ctx=64", {"pull": "never"})],
)
def test_a_model_of_the_list_is_local_before_it_is_shown(text: str, terms: dict[str, Any]) -> None:
    phases: list[tuple[str, int]] = []
    server = Server(loaded_models=[loaded_for(600)])

    def say(event: Event) -> None:
        phases.append((event.phase, len(server.asked)))

    assert ensure(as_client(server), target(text), Terms(**terms), by="main", say=say).ready
    assert ("local", 1) in phases


@pytest.mark.parametrize(
    ("text", "terms", "stored"),
    [
        ("m", {"pull": "always"}, [LocalModel("m:latest", "0a109f4200", 7)]),
        ("m@sha256:0a109f4200", {}, [LocalModel("m:latest", "0a109f4200", 7)]),
        ("m", {}, [LocalModel("other:latest", "0a109f4200", 7)]),
        ("m", {}, api_error("/api/tags", 404, "404 page not found")),
    ],
    ids=["refreshed", "pinned", "another", "no list"],
)
def test_only_the_list_alone_settles_that(text: str, terms: dict[str, Any], stored: Any) -> None:
    phases: list[str] = []
    server = Server(stored=[stored], pull=[[SUCCESS]])
    outcome = ensure(
        as_client(server),
        target(text),
        Terms(**terms),
        by="x",
        say=lambda e: phases.append(e.phase),
    )
    assert outcome.ready, outcome.error
    assert "local" not in phases


def test_what_is_listed_is_not_asked_for_again_to_find_a_slip() -> None:
    server = Server(show=[None], stored=[[LocalModel("n:latest", "0a109f4200", 7)]])
    assert not prepared(server, pull="never").ready
    assert ["tags", "show"] == server.asked


def test_a_pull_without_a_model_after_it_is_a_failure() -> None:
    server = Server(show=[None], pull=[[SUCCESS]])
    outcome = prepared(server)
    assert (
        "m (from --ollama-preload) could not be pulled: pulled, but the server does not show it.\n"
        "Run again: a pull goes on where it stopped."
    ) == unnamed(outcome.error)
    assert ["tags", "show", "pull", "show"] == server.asked


def test_a_refresh_that_brings_nothing_is_no_pull() -> None:
    there = PullProgress("pulling a", "a", 100, 100)
    outcome = prepared(Server(pull=[[there, SUCCESS]]), pull="always")
    assert (("up to date",), None) == (outcome.notes, outcome.step("pull"))
    part = PullProgress("pulling a", "a", 100, 40)
    outcome = prepared(Server(pull=[[part, there, SUCCESS]]), pull="always")
    pulled = outcome.step("pull")
    assert pulled is not None
    # As the server lists it: what it tells in a pull may leave a part out.
    assert ((), 7) == (outcome.notes, pulled.size)


@pytest.mark.parametrize(("completed", "told"), [(100, set()), (60, {60})], ids=["there", "new"])
def test_a_refresh_tells_of_bytes_only_where_some_are_missing(
    completed: int, told: set[int]
) -> None:
    events: list[Event] = []
    line = PullProgress("pulling a", "a", 100, completed)
    server = as_client(Server(pull=[[line, SUCCESS]]))
    ensure(server, target(), Terms(pull="always"), by="main", say=events.append)
    assert told == {event.completed for event in events if event.total}


def test_always_refreshes_what_is_there() -> None:
    server = Server(pull=[[SUCCESS]])
    assert prepared(server, pull="always").ready
    assert ["tags", "show", "pull", "show", "tags", "ps", "generate", "ps"] == server.asked


@pytest.mark.parametrize(
    "failure",
    [
        api_error("/api/pull", 200, 'Get "https://registry": dial tcp: no such host'),
        api_error("/api/pull", 200, "pull model manifest: file does not exist"),
    ],
)
def test_always_keeps_the_old_one_where_the_registry_is_away(failure: ApiError) -> None:
    told: list[Event] = []
    server = as_client(Server(pull=[[failure]]))
    outcome = ensure(server, target(), Terms(pull="always"), by="main", say=told.append)
    assert outcome.ready
    assert ("not refreshed",) == outcome.notes
    assert [f"is not refreshed, what is there is used: {failure.words} [not-refreshed]"] == [
        event.why for event in told if event.phase == "outdated"
    ]


def test_a_pull_is_measured_and_told(clock: Clock) -> None:
    def stream() -> list[PullProgress | Exception]:
        return [
            PullProgress("pulling manifest"),
            PullProgress("pulling a", "a", 100, 10),
            PullProgress("pulling a", "a", 100, 100),
            PullProgress("pulling b", "b", 50),
            # Rolled back, and told without its total.
            PullProgress("pulling a", "a", 0, 60),
            PullProgress("pulling b", "b", 50, 50),
            # There already.
            PullProgress("pulling c", "c", 7, 7),
            SUCCESS,
        ]

    told: list[Event] = []
    server = Server(show=[None, CHAT], pull=[stream()])
    outcome = ensure(as_client(server), target(), Terms(), by="main", say=told.append)
    assert [
        ("checking", 0, 0),
        ("queued", 0, 0),
        ("pulling", 0, 0),
        ("pulling", 0, 0),
        ("pulling", 10, 100),
        ("pulling", 100, 100),
        ("pulling", 100, 150),
        ("pulling", 100, 150),
        ("pulling", 150, 150),
        ("pulling", 157, 157),
        ("pulling", 157, 157),
        ("present", 0, 0),
        ("loading", 0, 0),
    ] == [(one.phase, one.completed, one.total) for one in told]
    assert {target()} == {one.target for one in told}
    pulled = outcome.step("pull")
    assert pulled is not None
    assert (1000.0, 7) == (pulled.start, pulled.size)
    assert ["pull", "load"] == [step.kind for step in outcome.steps]


def test_every_step_is_a_sign_of_progress() -> None:
    beats: list[str] = []
    phases: list[str] = []
    server = Server(show=[None, CHAT], pull=[[SUCCESS]])
    ensure(
        as_client(server),
        target(),
        Terms(),
        by="x",
        say=lambda event: phases.append(event.phase),
        heartbeat=lambda: beats.append("heartbeat"),
    )
    assert ["checking", "queued", "pulling", "pulling", "present", "loading"] == phases
    assert len(phases) == len(beats)


# Pulls that fail


def test_a_pull_that_fails_is_the_outcome() -> None:
    failure = api_error("/api/pull", 200, "unauthorized: access denied")
    outcome = prepared(Server(show=[None], pull=[[PullProgress("pulling manifest"), failure]]))
    assert ("failed", "access refused", ()) == (outcome.status, outcome.brief, outcome.steps)
    assert (
        "m (from --ollama-preload) could not be pulled: unauthorized: access denied.\n"
        "The registry wants a login."
    ) == unnamed(outcome.error)


def test_a_pull_that_had_to_be_resumed_says_so(clock: Clock) -> None:
    lost = ServerUnreachable(HOST.url, HOST.source, "connection lost", 0.0)
    part = PullProgress("pulling a", "a", 100, 10)
    server = Server(show=[None, CHAT], pull=[[part, lost], [SUCCESS]])
    told: list[Event] = []
    outcome = ensure(as_client(server), target(), Terms(), by="main", say=told.append)
    assert ("resumed once",) == outcome.notes
    assert ["connection lost at 10 B of 100 B, resuming"] == [
        event.why for event in told if event.phase == "resuming"
    ]
    assert ["pull", "version", "pull"] == server.asked[2:5]


def test_another_pull_without_progress_is_not_waited_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_up(path: object, what: str, limit_s: float, on_wait: object) -> None:
        raise WaitedTooLong(what, limit_s + 1)

    monkeypatch.setattr(bring_module, "held", give_up)
    outcome = prepared(Server(show=[None]), load_timeout_s=90)
    assert outcome.error.startswith("pull of m: another process works on it")


# Cloud


@pytest.mark.parametrize("text", ["m:cloud", "m:480b-cloud", "M:Cloud"])
@pytest.mark.parametrize("pull", ["auto", "always"])
def test_a_cloud_model_is_neither_pulled_nor_loaded(text: str, pull: str) -> None:
    server = Server()
    outcome = prepared(server, text, pull=pull)
    assert outcome.ready
    assert ["show"] == server.asked
    assert ("runs in the cloud, not warmed",) == outcome.notes


@pytest.mark.parametrize("pull", ["auto", "always"])
def test_a_stub_of_a_cloud_model_is_neither_pulled_nor_loaded(pull: str) -> None:
    server = Server(show=[ModelInfo(("completion",), "https://ollama.com:443")])
    outcome = prepared(server, pull=pull)
    assert outcome.ready
    assert ["tags", "show"] == server.asked
    assert ("runs in the cloud, not warmed",) == outcome.notes


def test_a_missing_cloud_model_is_not_pulled() -> None:
    server = Server(show=[None])
    outcome = prepared(server, "m:cloud", pull="always")
    assert (
        "m:cloud (from --ollama-preload): the server does not offer this cloud model"
        in outcome.error
    )
    assert ["show"] == server.asked


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "unauthorized"),
        (403, "ollama cloud is disabled: remote model details are unavailable"),
    ],
)
def test_a_cloud_that_is_closed_is_not_a_matter_of_our_key(status: int, words: str) -> None:
    denied = AccessDenied(HOST.url, HOST.source, status, words, "none")
    outcome = prepared(Server(show=[denied]), "m:cloud")
    assert f'm:cloud does not load: "{words}".' == unnamed(outcome.error).partition("\n")[0]
    assert "ollama signin" in outcome.error
    assert "OLLAMA_API_KEY" not in outcome.error


def test_a_server_that_denies_access_is_told_as_such() -> None:
    denied = AccessDenied(HOST.url, HOST.source, 401, "unauthorized", "none")
    outcome = prepared(Server(show=[denied]))
    assert (str(denied), "access refused: HTTP 401") == (outcome.error, outcome.brief)


# Loading


def test_a_completion_model_is_loaded_by_a_short_generation() -> None:
    server = Server(loaded_models=[loaded_for(600)])
    prepared(server, "m,num_ctx=64", load_timeout_s=900, warm="prompt")
    (load,) = server.loads
    limit_s = load.pop("limit_s")
    assert load.pop("keep_alive") is None
    assert {"name": "m", "kind": "generate", "prompt": "Hi", "options": {"num_ctx": 64}} == load
    assert 890 < limit_s <= 900


def test_an_embedding_model_is_loaded_by_an_embedding() -> None:
    server = Server(show=[EMBED], loaded_models=[loaded_for(60)])
    assert prepared(server, warm="prompt").ready
    assert ["embed", "embed"] == [one["kind"] for one in server.loads]
    assert ["Hi", ""] == [one["prompt"] for one in server.loads]


def test_where_capabilities_are_unknown_generation_comes_first_and_then_embedding() -> None:
    server = Server(show=[UNKNOWN], load=[NO_TEXT, None], loaded_models=[loaded_for(60)])
    outcome = prepared(server)
    assert outcome.ready
    assert ["generate", "embed", "embed"] == [one["kind"] for one in server.loads]
    assert None is outcome.capabilities


def test_a_model_that_is_known_to_complete_is_not_tried_as_another_kind() -> None:
    server = Server(load=[NO_TEXT, None])
    assert "failed" == prepared(server).status
    assert ["generate"] == [one["kind"] for one in server.loads]


def test_an_embedding_that_fails_too_is_the_failure() -> None:
    failure = api_error("/api/embed", 400, '"m" does not support generate')
    server = Server(show=[UNKNOWN], load=[NO_TEXT, failure])
    assert "failed" == prepared(server).status
    assert ["generate", "embed"] == [one["kind"] for one in server.loads]


def test_load_only_sends_no_prompt() -> None:
    server = Server(loaded_models=[loaded_for(600)])
    assert prepared(server, warm="load").ready
    assert [""] == [one["prompt"] for one in server.loads]


@pytest.mark.parametrize(
    ("warm", "version", "expected"),
    [
        ("auto", "0.33.0", "load"),
        ("auto", "0.30.0", "load"),
        ("auto", "0.29.4", "prompt"),
        ("auto", "v0.6.5", "prompt"),
        ("auto", "1.0.0-rc1", "load"),
        # Built from source, or unknown.
        ("auto", "0.0.0", "load"),
        ("auto", "", "load"),
        ("auto", "nightly", "load"),
        ("prompt", "0.33.0", "prompt"),
        ("load", "0.6.5", "load"),
        ("off", "0.6.5", "off"),
    ],
)
def test_a_server_that_warms_itself_gets_no_prompt(warm: str, version: str, expected: str) -> None:
    assert expected == load_module.resolve_warm(warm, version)


def running(context: int, keep_alive_s: float | None = 600.0) -> list[LoadedModel]:
    return [LoadedModel("m:latest", "ab", 7, context, keep_alive_s)]


@pytest.mark.parametrize(
    ("spec", "there"),
    [
        ("m", running(4096)),
        ("m", running(8192)),
        ("m,num_ctx=8192", running(8192)),
        # A server before v0.32 does not say with which context; an unknown keep-alive does not end.
        ("m", running(0, None)),
    ],
)
def test_to_a_model_that_is_loaded_as_it_is_needed_nothing_is_sent(
    spec: str, there: list[LoadedModel]
) -> None:
    server = Server(before=there)
    outcome = prepared(server, spec)
    assert ([], True) == (server.loads, outcome.ready)
    assert ("already loaded",) == outcome.notes
    assert outcome.found_loaded
    assert there[0].context_length == outcome.context_length


@pytest.mark.parametrize(
    ("spec", "there", "warm"),
    [
        ("m,num_ctx=2048", running(8192), "load"),
        ("m,num_ctx=2048", running(0), "load"),
        # The server does not show these: only a request tells.
        ("m,num_thread=1", running(4096), "load"),
        ("m", running(4096), "prompt"),
    ],
)
def test_a_model_that_is_loaded_otherwise_is_loaded_as_it_is_needed(
    spec: str, there: list[LoadedModel], warm: str
) -> None:
    server = Server(before=there, loaded_models=[loaded_for(600)])
    outcome = prepared(server, spec, warm=warm)
    assert (1, True) == (len(server.loads), outcome.ready)
    assert "already loaded" not in outcome.notes


@pytest.mark.parametrize(
    ("keep_alive_s", "terms", "asked"),
    [
        # It may be gone before the first test.
        (60.0, {}, 600.0),
        (200.0, {}, None),
        (200.0, {"keep_alive_asked": True}, 600.0),
        (599.0, {"keep_alive_asked": True}, None),
        (CENTURIES, {"keep_alive_asked": True}, None),
        (200.0, {"keep_alive_asked": True, "keep_alive_s": -1.0}, -1.0),
    ],
)
def test_a_model_that_is_there_is_asked_to_stay_as_it_is(
    keep_alive_s: float, terms: dict[str, Any], asked: float | None
) -> None:
    server = Server(before=running(8192, keep_alive_s))
    assert prepared(server, **terms).already_loaded
    found = [(one["prompt"], one["options"], one["keep_alive"]) for one in server.loads]
    assert found == ([] if asked is None else [("", {"num_ctx": 8192}, asked)])


def test_without_warming_presence_is_enough() -> None:
    server = Server()
    outcome = prepared(server, warm="off")
    assert outcome.ready
    assert ["tags", "show"] == server.asked
    assert () == outcome.steps


def test_a_busy_server_is_asked_again_and_again(clock: Clock) -> None:
    told: list[Event] = []
    server = Server(load=[*[BUSY] * 7, None], loaded_models=[loaded_for(600)])
    outcome = ensure(as_client(server), target(), Terms(), by="x", say=told.append)
    assert outcome.ready
    assert [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0] == clock.slept
    assert 7 == [one.phase for one in told].count("busy")
    load = outcome.step("load")
    assert load is not None
    assert 17.75 == load.seconds


def test_a_server_that_stays_busy_fails_the_model(clock: Clock) -> None:
    server = Server(load=[BUSY])
    outcome = prepared(server, load_timeout_s=30)
    assert sum(clock.slept) <= 30
    assert (
        'm does not load: "server busy, please try again.".\nThe server stayed busy for 30 s; '
        "see its OLLAMA_MAX_QUEUE."
    ) == unnamed(outcome.error)
    assert [30.0, 29.75, 29.25] == [one["limit_s"] for one in server.loads][:3]


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (
            api_error("/api/generate", 500, "model requires more system memory (41 GiB)"),
            "Try a smaller tag or num_ctx; loaded now: other:1b, m:latest.",
        ),
        (
            api_error("/api/generate", 500, "cudaMalloc failed: out of memory"),
            "Try a smaller tag or num_ctx; loaded now: other:1b, m:latest.",
        ),
        (
            NO_TEXT,
            "The server calls it a completion model, so its weights are damaged: "
            "'ollama rm m' and pull it again.",
        ),
        (
            api_error("/api/generate", 500, 'tensor "x" offset+size (9) exceeds file size (8)'),
            "Its weights look damaged: 'ollama rm m' and pull it again.",
        ),
        (
            api_error("/api/generate", 500, "this model needs a newer version of Ollama"),
            "Update Ollama, or 'ollama rm m' and pull it again.",
        ),
        (
            api_error("/api/generate", 500, "llama runner process has terminated"),
            "The server's log says more.",
        ),
        (
            ServerUnreachable(HOST.url, HOST.source, "connection lost", 0.0),
            "The server went away; its log says why.",
        ),
        (
            ServerUnreachable(HOST.url, HOST.source, "no answer", 0.0),
            "--ollama-load-timeout is 15 min; raise it if the load needs more.",
        ),
    ],
)
def test_a_load_that_fails_says_what_to_do(failure: Exception, advice: str) -> None:
    outcome = prepared(Server(load=[failure], loaded_models=[loaded_for(600)]))
    assert "failed" == outcome.status
    words = failure.words if isinstance(failure, ApiError) else str(failure).split(": ")[1][:9]
    what, _, said = unnamed(outcome.error).partition("\n")
    assert advice == said
    quote = "'" if '"' in words else '"'
    assert re.fullmatch(f"m does not load: {quote}{re.escape(words)}.*{quote}[.]", what)
    assert words not in outcome.brief


@pytest.mark.parametrize(
    ("loaded_models", "named"),
    [
        ([], "none"),
        (api_error("/api/ps", 500, "nil"), "unknown"),
        (ServerUnreachable(HOST.url, HOST.source, "connection lost", 0.0), "unknown"),
    ],
)
def test_what_is_loaded_is_said_as_far_as_known(
    loaded_models: list[LoadedModel] | Exception, named: str
) -> None:
    failure = api_error("/api/generate", 500, "out of memory")
    outcome = prepared(Server(load=[failure], loaded_models=[loaded_models]))
    assert outcome.error.endswith(f"loaded now: {named}.")


def test_weights_that_show_cannot_read_are_called_damaged() -> None:
    outcome = prepared(Server(show=[api_error("/api/show", 500, "invalid file magic")]))
    assert (
        'm does not load: "invalid file magic".\nIts weights look damaged: '
        "'ollama rm m' and pull it again."
    ) == unnamed(outcome.error)


def test_a_server_that_cannot_be_reached_is_the_failure() -> None:
    gone = ServerUnreachable(HOST.url, HOST.source, "connection refused", 0.0)
    outcome = prepared(Server(show=[gone]))
    assert (str(gone), gone.brief) == (outcome.error, outcome.brief)


@pytest.mark.parametrize(
    "failure",
    [
        ServerUnreachable(HOST.url, HOST.source, "no answer", 0.0),
        api_error("/api/tags", 500, "no answer"),
    ],
)
def test_a_server_that_cannot_list_its_models_can_load_them(failure: Exception) -> None:
    outcome = prepared(Server(stored=[failure]))
    assert ("ready", "") == (outcome.status, outcome.digest)
    pinned = prepared(Server(stored=[failure]), "m@sha256:0a109f42")
    assert (
        'm does not load: "no answer".\nIts digest is not known, and the pin cannot be checked.'
    ) == unnamed(pinned.error)


def test_a_failure_after_the_pull_keeps_what_the_pull_cost() -> None:
    failure = api_error("/api/generate", 500, "out of memory")
    server = Server(show=[None, CHAT], pull=[[SUCCESS]], load=[failure])
    assert ["pull"] == [step.kind for step in prepared(server).steps]


# The keep-alive


@pytest.mark.parametrize(
    ("text", "keep_alive_s", "given_s", "asked"),
    [
        ("m", 600.0, 300.0, 600.0),
        ("m", 600.0, 597.0, 600.0),
        # Measured to the second, and some time has passed since the load.
        ("m", 600.0, 598.5, None),
        ("m", 600.0, 600.0, None),
        ("m", 600.0, 1800.0, None),
        ("m", 600.0, CENTURIES, None),
        ("m", -1.0, 86400.0, -1.0),
        ("m", -1.0, CENTURIES, None),
        ("m,keep_alive=1h", 600.0, 300.0, 3600.0),
        ("m,keep_alive=1m", 600.0, 300.0, None),
        ("m,keep_alive=-1", 600.0, 300.0, -1.0),
        ("M", 600.0, 300.0, 600.0),
        # Under another name: its keep-alive is not known.
        ("n", 600.0, 300.0, None),
        ("m", 600.0, None, None),
    ],
)
def test_a_keep_alive_is_asked_for_only_where_the_server_gives_a_shorter_one(
    text: str, keep_alive_s: float, given_s: float | None, asked: float | None
) -> None:
    server = Server(loaded_models=[loaded_for(given_s)])
    assert prepared(server, f"{text},num_ctx=64", keep_alive_s=keep_alive_s).ready
    first, *rest = server.loads
    assert None is first.get("keep_alive")
    assert ([] if asked is None else [asked]) == [one["keep_alive"] for one in rest]
    # Another prompt would generate again, other options would load again.
    assert all(("", {"num_ctx": 64}) == (one["prompt"], one["options"]) for one in rest)


def test_a_loaded_model_is_ready_though_the_server_cannot_say_what_is_loaded() -> None:
    outcome = prepared(Server(loaded_models=[api_error("/api/ps", 500, "nil")]))
    assert outcome.ready
    assert ["load"] == [step.kind for step in outcome.steps]


def test_a_loaded_name_that_nobody_can_read_is_passed_over() -> None:
    server = Server(loaded_models=[[LoadedModel("a/b/c/d", "", 0, 0, 1.0), *loaded_for(300)]])
    assert 4096 == prepared(server).context_length


# All models side by side


def ready(one: Target) -> Outcome:
    return Outcome(key=one.key, model=one.spec.name, status="ready")


def targets(text: str) -> list[Target]:
    return [Target(spec, "x") for spec in parse_specs(text, "x")]


class FakeWarmer:
    """Makes models ready by calling a function."""

    def __init__(self, work: Callable[[Target, Say], Outcome]) -> None:
        self._work, self.turns, self.host = work, Turns(), SimpleNamespace(url="http://h:1")

    def client(self) -> None:
        """There is none."""

    def ensure(self, target: Target, stage: str, say: Say, **more: object) -> Outcome:
        return self._work(target, say)


def preloader(work: Callable[[Target, Say], Outcome]) -> tuple[Preloader, Record]:
    warmer, record = cast("Warmer", FakeWarmer(work)), Record()
    return Preloader(Threads(lambda target: warmer, in_turns=False), record), record


def drain(preparation: Preloader, until: Any) -> list[Event]:
    return [event for event in preparation.events(until) if event is not None]


def test_all_models_become_outcomes() -> None:
    preparation, record = preloader(lambda one, say: ready(one))
    preparation.start(targets("a b c"))
    events = drain(preparation, "done")
    assert {one.key: ready(one) for one in targets("a b c")} == record.models
    assert ["done"] * 3 == [event.phase for event in events]


def test_nothing_to_prepare_ends_at_once() -> None:
    assert [] == list(preloader(lambda one, say: ready(one))[0].events("done"))


def test_models_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)

    def work(one: Target, say: Say) -> Outcome:
        together.wait()
        return ready(one)

    preparation, record = preloader(work)
    preparation.start(targets("a b c"))
    drain(preparation, "done")
    assert all(outcome.ready for outcome in record.models.values())


def test_a_model_is_begun_once() -> None:
    begun: list[str] = []

    def work(one: Target, say: Say) -> Outcome:
        begun.append(one.spec.name)
        return ready(one)

    preparation, _ = preloader(work)
    preparation.start(targets("a"))
    preparation.start(targets("A:latest b"))
    drain(preparation, "done")
    preparation.start(targets("a b"))
    assert [] == drain(preparation, "done")
    assert ["a", "b"] == sorted(begun)


def test_presence_is_waited_for_without_the_load() -> None:
    may_load, over = threading.Event(), threading.Event()

    def work(one: Target, say: Say) -> Outcome:
        say(Event(one, "pulling", 1, 2))
        say(Event(one, "present"))
        assert may_load.wait(30)
        over.set()
        return ready(one)

    preparation, record = preloader(work)
    preparation.start(targets("a b"))
    phases = [event.phase for event in drain(preparation, "present")]
    assert ({}, False) == (record.models, over.is_set())
    assert (2, 2) == (phases.count("pulling"), phases.count("present"))
    may_load.set()
    assert ["done", "done"] == [event.phase for event in drain(preparation, "done")]


def test_a_failure_is_an_end_of_waiting_for_presence_too() -> None:
    def work(one: Target, say: Say) -> Outcome:
        raise PullFailed("a", "x", "words", "advice")

    preparation, _ = preloader(work)
    preparation.start(targets("a"))
    (event,) = drain(preparation, "present")
    assert event.outcome is not None
    assert (
        "failed",
        "a (x) could not be pulled: words. [pull-failed]\nadvice",
        "the pull failed",
    ) == (
        event.outcome.status,
        event.outcome.error,
        event.outcome.brief,
    )


@pytest.mark.parametrize(
    "error", [ValueError("boom\n"), KeyboardInterrupt("boom"), SystemExit("boom")]
)
def test_a_crash_of_the_work_is_a_failed_outcome(error: BaseException) -> None:
    def work(one: Target, say: Say) -> Outcome:
        raise error

    preparation, record = preloader(work)
    preparation.start(targets("a,num_ctx=64"))
    drain(preparation, "done")
    (outcome,) = record.models.values()
    assert ("failed", "a", (("num_ctx", 64),)) == (outcome.status, outcome.model, outcome.options)
    assert (
        f'a does not load: "{type(error).__name__}: boom".\n'
        "This is an error in pytest-ollama-warmup; please report it."
    ) == unnamed(outcome.error)


def test_while_nothing_happens_the_display_gets_its_turn() -> None:
    may_end = threading.Event()

    def work(one: Target, say: Say) -> Outcome:
        assert may_end.wait(30)
        return ready(one)

    preparation, record = preloader(work)
    preparation.start(targets("a"))
    events = preparation.events("done")
    assert [None, None] == [next(events), next(events)]
    may_end.set()
    assert all(outcome.ready for outcome in record.models.values())
    assert "done" in [event.phase for event in events if event is not None]


def test_the_threads_do_not_keep_a_run_from_ending() -> None:
    seen: list[bool] = []

    def work(one: Target, say: Say) -> Outcome:
        seen.append(threading.current_thread().daemon)
        return ready(one)

    preparation, _ = preloader(work)
    preparation.start(targets("a"))
    drain(preparation, "done")
    assert [True] == seen


def test_no_more_than_four_models_are_pulled_at_once() -> None:
    class Counting(Server):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.at_once, self.most = threading.Lock(), 0, 0
            self.pulled: set[str] = set()
            self.full = threading.Barrier(PULLS_SIDE_BY_SIDE, timeout=30)

        def show(self, name: str, *, limit_s: float) -> ModelInfo | None:
            return CHAT if name in self.pulled else None

        def pull(self, name: str, *, insecure: bool, silence_s: float) -> Iterator[PullProgress]:
            with self.lock:
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            # Two rounds of four: fewer at once would wait here for ever.
            self.full.wait()
            time.sleep(0.01)
            with self.lock:
                self.pulled.add(name)
                self.at_once -= 1
            yield SUCCESS

    server, pulls = Counting(), threading.Semaphore(PULLS_SIDE_BY_SIDE)
    preparation, record = preloader(
        lambda one, say: ensure(
            as_client(server), one, Terms(pull="missing"), by="main", say=say, pulls=pulls
        )
    )
    preparation.start(targets("a b c d e f g h"))
    drain(preparation, "done")
    assert [True] * 8 == [outcome.ready for outcome in record.models.values()]
    assert 4 == PULLS_SIDE_BY_SIDE == server.most


def test_what_was_not_shown_when_ctrl_c_came_is_still_known() -> None:
    def work(model: Target, say: Say) -> Outcome:
        say(Event(model, "loading"))
        return ready(model)

    preparation, _ = preloader(work)
    preparation.start([target()])
    events = preparation.events("done")
    taken = next(event for event in events if event is not None)
    # As an interrupt in whoever shows it leaves things: it is not asked for the next one.
    assert "loading" == taken.phase
    assert taken == next(preparation.pending())


# Turns


def load_in(turns: Turns, key: str, loaded: list[str]) -> threading.Thread:
    def work() -> None:
        with turns.of(key):
            loaded.append(key)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_models_are_loaded_in_the_order_in_which_they_were_announced() -> None:
    turns, loaded = Turns(), list[str]()
    turns.announce("abc")
    threads = [load_in(turns, key, loaded) for key in "cba"]
    for thread in threads:
        thread.join(10)
    assert ["a", "b", "c"] == loaded


def test_one_that_is_pulled_or_fails_holds_up_nobody() -> None:
    turns, loaded = Turns(), list[str]()
    turns.announce("abc")
    thread = load_in(turns, "b", loaded)
    turns.step_aside("a")
    thread.join(10)
    assert ["b"] == loaded
    # It may come later, or not at all.
    load_in(turns, "c", loaded).join(10)
    load_in(turns, "a", loaded).join(10)
    assert ["b", "c", "a"] == loaded


def test_one_that_was_not_announced_comes_last() -> None:
    turns, loaded = Turns(), list[str]()
    turns.announce("a")
    late = load_in(turns, "x", loaded)
    load_in(turns, "a", loaded).join(10)
    late.join(10)
    assert ["a", "x"] == loaded


def test_one_loads_at_a_time() -> None:
    turns, loaded = Turns(), list[str]()
    with turns.of("a"):
        other = load_in(turns, "b", loaded)
        other.join(0.05)
        assert [] == loaded
    other.join(10)
    assert ["b"] == loaded


def test_a_load_that_fails_ends_its_turn() -> None:
    turns, loaded = Turns(), list[str]()
    with pytest.raises(ZeroDivisionError), turns.of("a"):
        raise ZeroDivisionError
    load_in(turns, "b", loaded).join(10)
    assert ["b"] == loaded
