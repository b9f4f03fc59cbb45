"""What ``--log-cli-level=debug`` shows of the plugin's work, and what it never shows."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.errors import ServerError
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.logs import tolerating
from pytest_ollama_warmup.ollama.plain_look import loaded_models
from tests.conftest import LLAMA, ONE_TEST

if TYPE_CHECKING:
    from pytest_ollama_warmup.emulator import Emulator
    from tests.conftest import Suite

DEBUG = "--log-cli-level=debug"
NAME = "pytest_ollama_warmup"
SECRETS = {"password": "hunter2hunter2", "key": "k3y-of-the-user", "header": "gate-k3y-value"}


def requests_in(text: str) -> list[str]:
    """The requests that the log shows: method and path."""
    found = re.findall(r"DEBUG +pytest_ollama_warmup:\S+ (GET|POST) \S+?(/api/\w+)(?!\S)", text)
    return [f"{method} {path}" for method, path in found]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, NAME)
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    said = [one.getMessage() for one in log.records if one.name == NAME]
    return [re.sub(r"after [\d.]+ m?s", "after T", re.sub(r":\d+/", "/", one)) for one in said]


def test_debug_shows_the_work_request_by_request(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-pull=missing", DEBUG)
    assert {"passed": 1} == run.counts
    sent = [f"{one.method} {one.path}" for one in suite.ollama.requests]
    assert sent == requests_in(run.out)
    assert "llama3.2:1b: pulling manifest" in run.out
    assert re.search(r"POST \S+/api/generate: HTTP 200 after [\d.]+ m?s", run.out)


@pytest.mark.parametrize("args", [[], ["-n1"]], ids=["single", "n1"])
def test_a_log_file_has_it_too(suite: Suite, args: list[str]) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-pull=missing", "--log-file=log.txt", "--log-file-level=debug", *args)
    assert {"passed": 1} == run.counts
    said = (suite.pytester.path / "log.txt").read_text("utf-8")
    assert "POST /api/pull" in requests_in(said)
    assert 1 == said.count("llama3.2:1b: pulling manifest")


def test_the_logger_is_left_as_it_was(suite: Suite) -> None:
    level = "logging.getLogger('pytest_ollama_warmup').level"
    handlers = level.replace("level", "handlers")
    test = f"""
        import logging
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        def test_a():
            assert ({level}, {handlers}) == (0, [])
    """
    suite.write({"test_a.py": test})
    assert {"passed": 1} == suite.run("--ollama-pull=missing", DEBUG).counts


def test_without_it_nothing_of_that_is_shown(suite: Suite) -> None:
    suite.write(ONE_TEST)
    assert NAME not in suite.run("--ollama-pull=missing").out


def test_no_secret_is_shown(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write(ONE_TEST)
    monkeypatch.setenv("OLLAMA_API_KEY", SECRETS["key"])
    address = suite.ollama.url.replace("://", f"://user:{SECRETS['password']}@")
    header = f"--ollama-header=X-Gate: {SECRETS['header']}"
    run = suite.run(f"--ollama-host={address}", "--ollama-pull=missing", header, DEBUG, "-v")
    assert {"passed": 1} == run.counts
    assert requests_in(run.out)
    for secret in SECRETS.values():
        assert secret not in run.out + run.err


def test_a_request_and_its_end_are_a_line_each(
    client: Client, log: pytest.LogCaptureFixture
) -> None:
    client.version()
    client.show("llama3.2:1b")
    assert [
        "GET http://127.0.0.1/api/version",
        "GET http://127.0.0.1/api/version: HTTP 200 after T",
        'POST http://127.0.0.1/api/show {"model": "llama3.2:1b"}',
        "POST http://127.0.0.1/api/show: HTTP 404 after T",
    ] == lines(log)


def test_a_pull_logs_each_status_once(
    client: Client, ollama: Emulator, log: pytest.LogCaptureFixture
) -> None:
    said = list(dict.fromkeys(one.status for one in client.pull(LLAMA.name, silence_s=30)))
    first, *statuses, last = lines(log)
    assert first.startswith("POST http://127.0.0.1/api/pull")
    assert [f"{LLAMA.name}: {status}" for status in said] == statuses
    assert last == "POST http://127.0.0.1/api/pull: HTTP 200 after T"


def test_a_pull_that_is_left_is_dropped(client: Client, log: pytest.LogCaptureFixture) -> None:
    stream = client.pull(LLAMA.name, silence_s=30)
    next(stream)
    stream.close()
    assert "POST http://127.0.0.1/api/pull: dropped after T" == lines(log)[-1]


def test_a_request_without_an_answer_says_why(nobody: str, log: pytest.LogCaptureFixture) -> None:
    client = Client(parse_host(nobody, "test"))
    with pytest.raises(ServerError):
        client.loaded_models()
    client.close()
    assert "GET http://127.0.0.1/api/ps: no Ollama: connection refused after T" == lines(log)[-1]


def test_a_look_without_httpx_is_logged_too(
    ollama: Emulator, log: pytest.LogCaptureFixture
) -> None:
    assert [] == loaded_models(parse_host(ollama.url, "test"), "")
    assert [
        "GET http://127.0.0.1/api/ps",
        "GET http://127.0.0.1/api/ps: HTTP 200 after T",
    ] == lines(log)


def test_a_long_body_is_cut(client: Client, log: pytest.LogCaptureFixture) -> None:
    client.show("m" * 70 + "/" + "n" * 70 + "/" + "o" * 70)
    assert 400 > len(lines(log)[0])


def test_what_is_tolerated_leaves_its_traceback(log: pytest.LogCaptureFixture) -> None:
    with tolerating("to look"):
        raise OSError("not there")
    with tolerating("to look"):
        pass
    (record,) = log.records
    assert "to look failed" == record.getMessage()
    assert record.exc_info is not None
    assert "not there" == str(record.exc_info[1])
    with pytest.raises(KeyboardInterrupt), tolerating("to look"):
        raise KeyboardInterrupt
