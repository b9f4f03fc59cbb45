"""A suite that says where its server is after pytest has begun: in a conftest, by a plugin."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
LISTED = pytest.mark.parametrize(
    "listed", [[], ["--ollama-preload=llama3.2:1b"]], ids=["", "listed"]
)
LATE = "OLLAMA_HOST, set by conftest.py or a plugin"


@pytest.fixture
def other() -> Iterator[Emulator]:
    """The server that the suite means."""
    with Emulator([replace(LLAMA, present=True)]) as other:
        yield other


def conftest(url: str) -> str:
    return f"import os\nos.environ['OLLAMA_HOST'] = {url!r}\n"


@WORKERS
@LISTED
@pytest.mark.parametrize("before", ["unset", "another"])
def test_what_a_conftest_sets_counts(
    suite: Suite,
    other: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    listed: list[str],
    before: str,
) -> None:
    if before == "unset":
        monkeypatch.delenv("OLLAMA_HOST")
    suite.write({**ONE_TEST, "conftest.py": conftest(other.url)})
    run = suite.run("-v", *listed, *workers)
    assert {"passed": 1} == run.counts
    assert ([], 1) == (suite.ollama.requests, len(other.loads))
    assert f"{other.url} ({LATE})" in run.ours[0]
    assert "Warning" not in run.out


@WORKERS
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_what_a_plugin_sets_counts_whatever_the_order(
    suite: Suite, other: Emulator, workers: list[str], first: bool
) -> None:
    suite.write(
        {
            **ONE_TEST,
            # As pytest-env does it.
            "sets_it.py": f"""
                import os, pytest

                @pytest.hookimpl(tryfirst=True)
                def pytest_load_initial_conftests(args, early_config, parser):
                    os.environ["OLLAMA_HOST"] = {other.url!r}
            """,
            "pytest.ini": f"[pytest]\naddopts = {'-p sets_it -p ollama_warmup' if first else '-p ollama_warmup -p sets_it'}\n",
        }
    )
    run = suite.run(*workers)
    assert {"passed": 1} == run.counts
    assert ([], 1) == (suite.ollama.requests, len(other.loads))


def test_the_command_line_goes_before_it(suite: Suite, other: Emulator) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write({**ONE_TEST, "conftest.py": conftest(other.url)})
    run = suite.run(f"--ollama-host={suite.ollama.url}")
    assert {"passed": 1} == {key: n for key, n in run.counts.items() if key == "passed"}
    assert ([], 1) == (other.requests, len(suite.ollama.loads))


def test_it_goes_before_a_configuration_file(suite: Suite, other: Emulator) -> None:
    suite.write(
        {
            **ONE_TEST,
            "conftest.py": conftest(other.url),
            "pytest.ini": f"[pytest]\nollama_host = {suite.ollama.url}\n",
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert ([], 1) == (suite.ollama.requests, len(other.loads))


def test_a_bad_one_is_named_where_a_model_is_needed(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n", "conftest.py": conftest("ftp://nowhere")})
    assert {"passed": 1} == suite.run().counts
    suite.write(ONE_TEST)
    run = suite.run()
    assert 4 == run.ret
    assert f"(from {LATE}) is not an address of an Ollama server" in run.err
    assert "Traceback" not in run.err


MOVES = """
    import os
    import pytest

    @pytest.fixture(autouse=True)
    def environment(monkeypatch):
        monkeypatch.setenv("OLLAMA_HOST", {url!r})
"""


@WORKERS
def test_what_a_fixture_sets_is_warned_of_once(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    two = (
        ONE_TEST["test_chat.py"].replace("test_tone", "test_one")
        + "\n        test_two = test_one\n"
    )
    suite.write({"test_chat.py": two, "conftest.py": MOVES.format(url=other.url)})
    run = suite.run(*workers, "-W", "always")
    assert 2 == run.counts["passed"]
    words = (
        f"OLLAMA_HOST is '{other.url}' in this test, and models are prepared at {suite.ollama.url}"
    )
    # Each worker sees its own tests only.
    assert 1 <= run.out.count(words) <= max(1, 2 * len(workers))
    assert {"passed": 2} == suite.run(*workers, "-W", "error").counts


def test_another_spelling_and_a_test_that_needs_no_model_are_none(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    same = suite.ollama.url.replace("127.0.0.1", "localhost") + "/"
    suite.write({**ONE_TEST, "conftest.py": MOVES.format(url=same)})
    assert {"passed": 1} == suite.run("-W", "error").counts
    suite.write(
        {
            **ONE_TEST,
            "conftest.py": "",
            "test_other.py": "def test_it(monkeypatch): monkeypatch.setenv('OLLAMA_HOST', 'h:1')\n",
        }
    )
    assert "Warning" not in suite.run().out


def test_an_address_of_the_tests_own_fixture_is_none(suite: Suite, other: Emulator) -> None:
    suite.write(
        {
            "test_it.py": f"""
                import os
                import pytest

                @pytest.fixture(scope="session")
                def ollama_host():
                    return {other.url!r}

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_host, monkeypatch):
                    pass

                @pytest.fixture(autouse=True)
                def environment(monkeypatch, ollama_host):
                    monkeypatch.setenv("OLLAMA_HOST", ollama_host)
            """
        }
    )
    run = suite.run()
    assert {"passed": 1} == run.counts
    assert "Warning" not in run.out
