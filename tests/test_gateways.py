"""What stands between us and the server, and answers by itself: proxies and gateways."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.conftest import LLAMA, ONE_TEST, Suite
from tests.front import front

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

    from tests.front import Answer

PAGE = b"<html><title>Web Gateway</title></html>"
LIST = "--ollama-preload=llama3.2:1b"


@contextmanager
def gateway(
    port: int, *, status: int, times: int, path: str = "", after_s: float = 0.0
) -> Iterator[str]:
    """Pass requests on to *port*, but answer the first *times* for *path* with a page of its own.

    It does so after *after_s* seconds.

    The server hears of those too, from a client that is gone soon: as of one that has a limit.
    """
    left = [times]

    def answer(request: BaseHTTPRequestHandler, asked: str) -> Answer | None:
        if path not in asked or not left[0]:
            return None
        left[0] -= 1
        time.sleep(after_s)
        return status, "text/html", PAGE

    with front(port, answer) as address:
        yield f"http://{address}"


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_that_cuts_a_load_once_is_asked_again(suite: Suite, status: int) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=status, times=1, path="/api/generate") as url:
        # By the mark alone: what is asked for early meets the gateway first.
        run = suite.run(f"--ollama-host={url}")
    assert ({"passed": 1}, 1) == (run.counts, len(suite.ollama.loads))


def test_one_that_always_does_is_named_and_its_page_is_not_shown(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=504, times=99, path="/api/generate") as url:
        run = suite.run(f"--ollama-host={url}")
    assert {"skipped": 1} == run.counts
    assert "HTTP 504 from a gateway before the server" in run.out
    assert "Raise the time limit of the gateway (proxy_read_timeout in nginx)" in run.out
    assert "Web Gateway" not in run.out


@pytest.mark.parametrize("status", [502, 504, 524])
def test_the_time_limit_of_a_gateway_is_named_as_it_showed(suite: Suite, status: int) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=status, times=99, path="generate", after_s=1.1) as url:
        run = suite.run(f"--ollama-host={url}")
    assert {"skipped": 1} == run.counts
    # On a busy machine it takes longer.
    assert re.search(
        rf'"HTTP {status} from a gateway before the server, after ([\d.]+ s)"\. \[gateway-answered\]\n.*\n        → Raise the time limit '
        r"of the gateway \(proxy_read_timeout in nginx\), about \1, above what a load takes, or "
        r"connect to the server directly with --ollama-host URL\.",
        run.out,
    )


@pytest.mark.parametrize("status", [502, 503])
def test_a_gateway_that_does_not_wait_has_no_limit_to_raise(suite: Suite, status: int) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=status, times=99, path="/api/generate") as url:
        run = suite.run(f"--ollama-host={url}")
    assert {"skipped": 1} == run.counts
    assert "The gateway did not reach the server." in run.out
    assert "connect to the server directly with --ollama-host URL" in run.out
    assert "time limit" not in run.out


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (503, "HTTP 503 from the proxy of VARIABLE for 0.3 s."),
        (
            403,
            "the proxy of VARIABLE answers in place of http://ollama:11434 (from --ollama-host): HTTP 403.",
        ),
        (
            407,
            "the proxy of VARIABLE answers in place of http://ollama:11434 (from --ollama-host): HTTP 407.",
        ),
    ],
)
def test_a_proxy_that_answers_by_itself_is_named_with_its_variable(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, variable: str, status: int, words: str
) -> None:
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=status, times=999) as url:
        monkeypatch.setenv(variable, url)
        run = suite.run("--ollama-host=http://ollama:11434", "--ollama-wait=0.3")
    assert {"skipped": 1} == run.counts
    assert words.replace("VARIABLE", variable) in run.out
    assert "If the server needs no proxy, add ollama to NO_PROXY." in run.out
    assert "Web Gateway" not in run.out


def test_an_answer_of_ollama_that_a_proxy_passes_on_is_ollamas(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.ollama.answer_all_with(403, "application/json", b'{"error": "not for you"}')
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, status=0, times=0) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        run = suite.run("--ollama-host=http://ollama:11434", "--ollama-wait=0")
    assert 'refuses access (HTTP 403 "not for you")' in run.out
    assert "the proxy of" not in run.out
