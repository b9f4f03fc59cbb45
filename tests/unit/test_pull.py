"""One download over as many requests as it takes, against a scripted server and clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from pytest_ollama_warmup.config.model_specs import ModelSpec
from pytest_ollama_warmup.config.terms import Terms
from pytest_ollama_warmup.errors import (
    AccessDenied,
    ApiError,
    NotOllama,
    PullFailed,
    ServerUnreachable,
    UnknownModel,
)
from pytest_ollama_warmup.ollama.causes import api_error
from pytest_ollama_warmup.ollama.host import Host
from pytest_ollama_warmup.ollama.responses import PullProgress
from pytest_ollama_warmup.warmup import pull as pull_module
from pytest_ollama_warmup.warmup.pull import Progress, Pulled, pull

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ollama_warmup.errors import NoAnswer
    from pytest_ollama_warmup.ollama.client import Client

HOST = Host("http://h:1", "--ollama-host")
MANIFEST, SUCCESS = PullProgress("pulling manifest"), PullProgress("success")
GONE = "Is the server still running? Run again: a pull goes on where it stopped."


def part(completed: int, digest: str = "a", total: int = 100) -> PullProgress:
    return PullProgress(f"pulling {digest}", digest, total, completed)


def said(words: str, status: int = 200) -> ApiError:
    return api_error("POST /api/pull", status, words)


def lost(cause: NoAnswer = "connection lost") -> ServerUnreachable:
    return ServerUnreachable(HOST.url, HOST.source, cause, 0.0)


Line = PullProgress | Exception | float


@dataclass
class Server:
    """Plays one stream after the other, the last one for ever; a number is a pause in seconds."""

    streams: list[list[Line]]
    away: Exception | None = None
    """What it says when it is waited for."""
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    closed: int = 0
    host = HOST

    def pull(
        self, name: str, *, insecure: bool, silence_s: float
    ) -> Generator[PullProgress, None, None]:
        self.silences.append(silence_s)
        stream = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        try:
            for line in stream:
                if isinstance(line, Exception):
                    raise line
                if isinstance(line, float):
                    self.now += line
                else:
                    yield line
        finally:
            self.closed += 1

    def wait_until_ready(self, limit_s: float) -> str:
        self.waits.append(limit_s)
        if self.away is not None:
            raise self.away
        return "0.33.0"

    # The clock of the module under test.

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def told() -> list[str]:
    """Why the pull was resumed, each time."""
    return []


def pulled(
    monkeypatch: pytest.MonkeyPatch, server: Server, told: list[str] | None = None, **terms: float
) -> Pulled:
    monkeypatch.setattr(pull_module, "clock", server)
    return pull(
        cast("Client", server),
        ModelSpec("m"),
        "from x",
        Terms(**terms),  # type: ignore[arg-type]
        lambda progress, moved: None,
        (told if told is not None else []).append,
    )


# Stalls


def test_bytes_that_stand_still_drop_the_pull_and_resume_it(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    dead: list[Line] = [part(50), 20.0, part(50), 6.0, part(50), 0.0, part(99)]
    server = Server([[MANIFEST, *dead], [part(60), SUCCESS]])
    assert Pulled(100, True, 1) == pulled(monkeypatch, server, told)
    assert ["no new byte for 25 s (--ollama-stall) at 50 B of 100 B, resuming"] == told
    # The dropped stream is closed, not left to the garbage collector.
    assert 2 == server.closed
    # Long enough for the server to notice that its client is gone.
    assert [0.5] == server.slept


def test_a_part_that_is_rolled_back_and_climbs_again_stands_still(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    rolled: list[Line] = [part(50), 20.0, part(10), 3.0, part(30), 3.0, part(50)]
    server = Server([[MANIFEST, *rolled], [SUCCESS]])
    assert 1 == pulled(monkeypatch, server, told).resumed


def test_a_slow_pull_that_moves_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[Line] = [one for done in range(1, 100) for one in (part(done), 24.0)]
    server = Server([[*slow, SUCCESS]])
    assert 0 == pulled(monkeypatch, server).resumed
    assert 1000 + 99 * 24 == server.now


@pytest.mark.parametrize(
    "silent",
    [
        [MANIFEST, 800.0, part(10)],
        # The size of the next part is asked for; the last line of one may be short of its total.
        [part(99), 800.0, part(1, "b")],
        [part(100), PullProgress("verifying sha256 digest"), 800.0, PullProgress("writing")],
    ],
    ids=["manifest", "head", "verify"],
)
def test_silence_is_no_stall(monkeypatch: pytest.MonkeyPatch, silent: list[Line]) -> None:
    server = Server([[*silent, SUCCESS]])
    assert 0 == pulled(monkeypatch, server).resumed
    # It has its own limit, which the client keeps.
    assert [900.0] == server.silences


def test_silence_beyond_its_limit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([[MANIFEST, lost("no answer")]])
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server, load_timeout_s=90)
    assert "no word from the server for 90 s (--ollama-load-timeout)" == caught.value.words
    assert GONE == caught.value.advice
    assert [] == server.slept


def test_a_part_whose_size_another_pull_asks_for_is_waited_for_as_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = PullProgress("pulling b", "b")
    waiting: list[Line] = [unknown, 85.0, unknown]
    server = Server([[part(100), *waiting, part(1, "b", 1), SUCCESS]])
    assert 0 == pulled(monkeypatch, server, load_timeout_s=90).resumed
    # Its first line with a size ends the wait, also where no byte has come.
    known: list[Line] = [part(0, "b", 14), 20.0, part(0, "b", 14), 6.0, part(14, "b", 14)]
    server = Server([[part(100), *waiting, *known, SUCCESS]])
    assert 0 == pulled(monkeypatch, server, load_timeout_s=90, stall_s=30).resumed
    server = Server([[part(100), *waiting, 10.0, unknown]])
    with pytest.raises(PullFailed, match="no word from the server for 90 s"):
        pulled(monkeypatch, server, load_timeout_s=90)


def test_five_resumptions_without_a_new_byte_fail(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    server = Server([[MANIFEST, part(50), 26.0, part(50)]])
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server, told, stall_s=25)
    assert "no new byte for 25 s (--ollama-stall), also after 5 resumptions" == caught.value.words
    assert (
        "The registry sends nothing. Run again: a pull goes on where it stopped."
    ) == caught.value.advice
    assert 6 == server.closed
    assert 5 * [0.5] == server.slept
    assert told[1].endswith("at 50 B of 100 B, resuming (2 of 5)")
    assert told[-1].endswith("resuming (5 of 5)")


def test_a_new_byte_gives_five_more(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    stalls: list[list[Line]] = [
        [MANIFEST, part(done), 26.0, part(done)] for done in range(1, 21) for _ in range(4)
    ]
    server = Server([*stalls, [SUCCESS]])
    assert 80 == pulled(monkeypatch, server, told).resumed


def test_a_byte_that_was_there_before_is_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # A server that was killed begins again from less than it had: that is progress while it lasts,
    # and none if it always ends at the same place.
    again: list[Line] = [MANIFEST, *(one for done in range(1, 51) for one in (part(done), 20.0))]
    server = Server([[*again, lost()]])
    with pytest.raises(PullFailed, match="connection lost, also after 5 resumptions"):
        pulled(monkeypatch, server)
    assert 6 == server.closed


# Errors that pass, and errors that do not


PASSING = [
    "pull model manifest: 503: the registry is busy",
    "pull model manifest: 429: slow down",
    "503: ",
    "unexpected status code 502",
    "max retries exceeded: EOF",
    "max retries exceeded: unexpected EOF",
    "read tcp 10.0.0.1:500->10.0.0.2:443: read: connection reset by peer",
    "write: broken pipe",
    'Get "https://h/v2/": dial tcp: lookup h: server misbehaving',
    "context canceled",
    'Get "http://h/v2/t/m/blobs/sha256:500": context canceled',
]


@pytest.mark.parametrize("words", PASSING)
def test_what_may_pass_is_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, told: list[str], words: str
) -> None:
    busy: list[Line] = [MANIFEST, said(words)]
    server = Server([busy, busy, busy, [SUCCESS]])
    assert 3 == pulled(monkeypatch, server, told).resumed
    assert [f"{words}, resuming", f"{words}, resuming (2 of 5)", f"{words}, resuming (3 of 5)"] == (
        told
    )
    assert [0.5, 1.0, 2.0] == server.slept


@pytest.mark.parametrize("words", PASSING)
def test_what_does_not_pass_after_all_fails(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    server = Server([[MANIFEST, said(words)]])
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server)
    assert f"{words}, also after 5 resumptions" == caught.value.words
    assert [0.5, 1.0, 2.0, 4.0, 8.0] == server.slept


def test_a_registry_that_stays_busy_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[Line] = [MANIFEST, said("pull model manifest: 503: the registry is busy")]
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, Server([busy]))
    assert (
        "The registry cannot answer now. Run again: a pull goes on where it stopped."
    ) == caught.value.advice


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_of_the_server_may_pass_too(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    server = Server([[said("busy", status)], [SUCCESS]])
    assert 1 == pulled(monkeypatch, server).resumed


AWAY = [
    'Get "http://h:5412/v2/": dial tcp 1.2.3.4:5412: connect: connection refused',
    'Get "https://registry.ollama.ai/v2/": dial tcp: lookup: no such host',
    "dial tcp 1.2.3.4:443: connect: network is unreachable",
    'Get "https://h/v2/": net/http: TLS handshake timeout',
    "dial tcp 1.2.3.4:443: i/o timeout",
]


@pytest.mark.parametrize("words", AWAY)
def test_a_registry_that_is_away_fails_at_once(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, Server([[MANIFEST, said(words)]]))
    assert words == caught.value.words
    assert (
        "The server cannot reach the registry: pull when online, or set HTTPS_PROXY for the server."
    ) == caught.value.advice


@pytest.mark.parametrize("words", AWAY)
def test_a_registry_that_was_there_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, told: list[str], words: str
) -> None:
    server = Server([[part(10), said(words)], [said(words)], [SUCCESS]])
    assert 2 == pulled(monkeypatch, server, told).resumed
    assert f"{words} at 10 B of 100 B, resuming" == told[0]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            'Get "https://h": http: server gave HTTP response to HTTPS client',
            "For a registry without TLS write m,insecure=true.",
        ),
        (
            "tls: first record does not look like a TLS handshake",
            "For a registry without TLS write m,insecure=true.",
        ),
        ("unauthorized: access denied", "The registry wants a login."),
        ('realm host "" does not match original host "h"', "The registry wants a login."),
        (
            "write /m/blobs/sha256-500-partial: no space left on device",
            "Free some space where the server keeps its models.",
        ),
        (
            "pull model manifest: 412: The model you are attempting to pull requires a newer "
            "version of Ollama.",
            "Update Ollama.",
        ),
        ("pull model manifest: 412: ", "Update Ollama."),
        ("invalid model name", "Names are [HOST/][NAMESPACE/]MODEL[:TAG]."),
        ("something new", "Run 'ollama pull m' to see more."),
    ],
)
def test_what_does_not_pass_fails_at_once_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, words: str, advice: str
) -> None:
    # Also in the middle of a download.
    server = Server([[MANIFEST, part(10), said(words)]])
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server)
    assert f"m (from x) could not be pulled: {words}.\n{advice}" == caught.value.message
    assert [] == server.slept


def test_a_model_that_the_registry_does_not_have_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "pull model manifest: file does not exist"
    with pytest.raises(UnknownModel) as caught:
        pulled(monkeypatch, Server([[MANIFEST, said(words)]]))
    assert ("m", "from x", words, "", "") == caught.value.args


MISMATCH = "digest mismatch, file must be downloaded again: want sha256:a412, got sha256:412b"


def test_a_damaged_download_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([[part(100), said(MISMATCH)], [part(100), SUCCESS]])
    assert 1 == pulled(monkeypatch, server).resumed


def test_a_download_that_is_damaged_twice_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([[part(100), said(MISMATCH)]])
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server)
    assert MISMATCH == caught.value.words
    assert "The server has thrown the damaged part away: run again." == caught.value.advice
    assert 2 == server.closed


# Streams and servers that go away


@pytest.mark.parametrize(
    "stream", [[], [MANIFEST, PullProgress("verifying sha256 digest")]], ids=["empty", "early"]
)
def test_a_stream_that_ends_without_success_is_no_pull(
    monkeypatch: pytest.MonkeyPatch, told: list[str], stream: list[Line]
) -> None:
    server = Server([stream, [SUCCESS]])
    assert 1 == pulled(monkeypatch, server, told).resumed
    assert ["the server ended the stream before 'success', resuming"] == told


def test_a_server_that_comes_back_is_resumed(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    server = Server([[part(50), lost()], [part(10), part(100), SUCCESS]])
    assert Pulled(100, True, 1) == pulled(monkeypatch, server, told, comes_back_s=17)
    assert ["connection lost at 50 B of 100 B, resuming"] == told
    assert [17.0] == server.waits


def test_a_server_that_stays_away_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([[part(50), lost()]], away=lost("connection refused"))
    with pytest.raises(PullFailed) as caught:
        pulled(monkeypatch, server, comes_back_s=17)
    assert (
        "connection lost at 50 B of 100 B, then connection refused for 17 s (--ollama-wait)"
    ) == caught.value.words
    assert GONE == caught.value.advice
    assert 1 == server.closed


def test_another_service_in_its_place_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = AccessDenied(HOST.url, HOST.source, 401, "sign in", "none")
    with pytest.raises(AccessDenied):
        pulled(monkeypatch, Server([[part(50), lost()]], away=denied))


def test_progress_is_the_highest_mark_of_each_part() -> None:
    progress = Progress()
    progress.note("a", 60, 100)
    progress.note("b", 5, 5)
    # A part that the server has rolled back.
    progress.note("a", 20, 100)
    assert (65, 105, "65 B of 105 B") == (progress.completed, progress.total, str(progress))


def test_a_pull_of_more_parts_than_any_model_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = [part(1, f"{number:x}", 1) for number in range(pull_module.PARTS)]
    server = Server([[*most, *most, SUCCESS]])
    assert Pulled(pull_module.PARTS, False, 0) == pulled(monkeypatch, server)
    with pytest.raises(NotOllama, match="POST /api/pull: more than 50000 parts of one model"):
        pulled(monkeypatch, Server([[*most, part(1, "another", 1), SUCCESS]]))


def test_a_pull_of_what_is_there_brings_nothing_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[Line] = [MANIFEST, part(100), part(7, "b", 7), SUCCESS]
    assert Pulled(107, False, 0) == pulled(monkeypatch, Server([there]))
