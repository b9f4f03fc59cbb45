"""What users get wrong in their first hour, and what they read then."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import ONE_TEST
from tests.test_guard import write

if TYPE_CHECKING:
    from tests.conftest import Suite

SIGNATURE = "requires_model(*specs, capabilities=(), options=None, on_unavailable=None)"


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("model='a:1'", 'models are given without model=: requires_model("a:1").'),
        ("models=['a:1', 'b:1']", 'models are given without models=: requires_model("a:1", "b:1").'),
        ("'a:1', num_ctx=4096", 'num_ctx goes into options={"num_ctx": 4096}.'),
        ("'a:1', keep_alive='1h'", 'keep_alive goes into options={"keep_alive": "1h"}.'),
        ("'a:1', temperature=0", "temperature does not decide how a model is loaded: send it with each request."),
        ("'a:1', capability='tools'", "requires_model has no argument capability; did you mean capabilities?"),
        ("'a:1', capabilities='tool'", "no model has the capability 'tool'; did you mean 'tools'?"),
    ],
)  # fmt: skip
def test_an_argument_that_the_mark_does_not_take_gets_what_to_write_instead(
    suite: Suite, mark: str, message: str
) -> None:
    suite.write(
        {"test_it.py": f"import pytest\n@pytest.mark.requires_model({mark})\ndef test_it(): ..."}
    )
    run = suite.run()
    assert 4 == run.ret
    assert f"ERROR: test_it.py::test_it: {message} The mark is {SIGNATURE}. [bad-mark]\n" in run.err


# No server


@pytest.mark.parametrize(
    ("options", "host", "environ", "refused_s"),
    [
        ({}, "127.0.0.1:1", {}, 0.3),
        ({}, "localhost:1", {}, 0.3),
        ({}, "elsewhere:1", {}, 2.0),
        ({"wait": "2"}, "127.0.0.1:1", {}, 2.0),
        ({}, "127.0.0.1:1", {"CI": "1"}, 60.0),
        ({"preload": ["a:1"]}, "127.0.0.1:1", {}, 60.0),
        ({"serve": True}, "", {}, 60.0),
    ],
    ids=["default", "by name", "elsewhere", "given", "CI", "listed", "served"],
)
def test_a_port_of_this_machine_that_refuses_is_waited_for_where_somebody_waits_for_it(
    options: dict[str, object], host: str, environ: dict[str, str], refused_s: float
) -> None:
    given = SimpleNamespace(**{f"ollama_warmup_{name}": value for name, value in options.items()})
    settings = read_settings(Sources(given, {"OLLAMA_HOST": host, **environ}))
    assert refused_s == settings.refused_s


@pytest.mark.parametrize(
    ("args", "ini", "waited"),
    [([], "", "0.3 s"), (["--ollama-wait=0.5"], "", "0.5 s"), ([], "ollama_wait = 0.5", "0.5 s")],
    ids=["default", "option", "ini"],
)
def test_without_a_server_on_this_machine_a_run_waits_for_a_moment(
    suite: Suite, nobody: str, args: list[str], ini: str, waited: str
) -> None:
    suite.write({**ONE_TEST, "pytest.ini": f"[pytest]\n{ini}\n"})
    run = suite.run(f"--ollama-host={nobody}", *args)
    assert {"skipped": 1} == run.counts
    assert (
        f"(from --ollama-host): connection refused for {waited}. [server-unreachable]\n" in run.out
    )


# What an IDE or a development container sets


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_download_that_only_ci_allows_says_so(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    suite.write(ONE_TEST)
    run = suite.run(*workers)
    assert {"passed": 1} == run.counts
    words = (
        "CI is set, so missing models are pulled; with --ollama-ci=no only those that you list are"
    )
    assert 1 == run.ours.count(words)
    # No more to say where nothing is pulled.
    assert words not in suite.run(*workers).ours


def test_a_run_that_ends_because_of_ci_says_so(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "nix:1")
    suite.write({"test_it.py": "def test_it(): pass\n"})
    run = suite.run()
    assert 2 == run.ret
    assert "CI is set; --ollama-ci=no goes on without it." in run.out
    assert {"passed": 1} == suite.run("--ollama-ci=no").counts
    # Not the variable ends it, but the list of the command line.
    by_option = suite.run("--ollama-preload=nix:1").err
    assert "--ollama-on-unavailable=skip goes on without it." in by_option


@pytest.mark.parametrize(
    "args",
    [["--ollama-preload=llama3.2:1b"], ["--ollama-pull=missing"], ["--ollama-ci=yes"]],
    ids=["listed", "allowed", "asked for"],
)
def test_a_download_that_the_user_asks_for_needs_no_reason(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    suite.write(ONE_TEST)
    run = suite.run(*args)
    assert {"passed": 1} == run.counts
    assert "so missing models are pulled" not in run.out


# Tests that say nothing of the models that they use

UNLISTED = (
    "{model} was used during test_it.py::{test}, and is not listed. [unlisted]\n  → If these tests use it, list it "
    "or mark the tests, so that it is loaded before."
)
CALLS = """
        def test_before(): ask("b:1")

        @A
        def test_marked(): ask("a:1")

        def test_between(): ask("c:1")

        @A
        def test_again(): ask("a:1")

        def test_after(): ask("d:1")
"""


@pytest.fixture
def models(suite: Suite) -> None:
    """Models that are there."""
    for name in "abcd":
        suite.ollama.add(ScriptedModel(f"{name}:1", present=True, digest=name * 64))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["single", "n1"])
def test_tests_that_call_what_nobody_marked_or_listed_are_named(
    suite: Suite, workers: list[str]
) -> None:
    write(suite, CALLS)
    run = suite.run(*workers)
    assert {"passed": 5} == run.counts
    for model, test in (("b:1", "test_before"), ("c:1", "test_between"), ("d:1", "test_after")):
        assert UNLISTED.format(model=model, test=test) in run.out
    assert "a:1 was" not in run.out


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("args", [[], ["--ollama-preload=a:1"]], ids=["marked", "listed"])
def test_where_several_tests_may_have_called_it_none_is_named(
    suite: Suite, args: list[str]
) -> None:
    marked = "" if args else "@A\n        def test_marked(): ask('a:1')\n"
    write(
        suite,
        f"""
        {marked}
        def test_one(): ask("b:1")
        def test_other(): pass
        """,
    )
    run = suite.run(*args)
    assert (
        "b:1 was used while tests ran, and is not listed. [unlisted]\n  → If your tests use it, list"
        in run.out
    )


@pytest.mark.usefixtures("models")
def test_where_all_tests_are_marked_no_look_is_added(suite: Suite) -> None:
    marked = """
        @A
        def test_it(): ask("a:1")
    """
    write(suite, marked)
    # From the second run on the model is there.
    assert {"passed": 1} == suite.run().counts
    looks = looks_of_a_run(suite)
    write(suite, f"{marked}\n        def test_other(): pass\n")
    assert looks + 2 == looks_of_a_run(suite)


def looks_of_a_run(suite: Suite) -> int:
    before = len(suite.ollama.requests)
    suite.run()
    return sum(one.path == "/api/ps" for one in suite.ollama.requests[before:])


LAST = {
    "marked": """
        @A
        def test_it(): pass

        @A
        def test_last(): ask("a:1", num_ctx=8192)
    """,
    "unmarked": """
        @A
        def test_it(): pass

        def test_last(): ask("a:1", num_ctx=8192)
    """,
    "listed": """
        def test_last(): ask("a:1", num_ctx=8192)
    """,
}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
@pytest.mark.parametrize("tests", LAST)
def test_a_reload_by_the_last_test_is_reported_in_that_run(
    suite: Suite, tests: str, workers: list[str]
) -> None:
    write(suite, LAST[tests])
    listed = ["--ollama-preload=a:1"] if tests == "listed" else []
    run = suite.run(*listed, *workers)
    assert re.search(r"^! a:1 was loaded with num_ctx 4096 .*8192: 1 reload\b", run.out, re.M)


# A forgotten indirect=True

PLAIN = """
    import pytest

    @pytest.mark.parametrize("ollama_model", ["a:1", "b:1"])
    def test_it(ollama_model): pass
"""
HINT = (
    "passes '{model}' to the test as a plain argument, so nothing loads that model before the test"
)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
@pytest.mark.parametrize("listed", ["", "a:1"])
def test_a_model_as_a_plain_argument_is_hinted_at_once(
    suite: Suite, listed: str, workers: list[str]
) -> None:
    suite.write({"test_it.py": PLAIN})
    run = suite.run(f"--ollama-preload={listed}", "--ollama-on-unavailable=skip", *workers)
    assert {"passed": 2} == run.counts
    assert 1 == run.out.count(HINT.format(model="b:1" if listed else "a:1"))
    assert 1 == run.out.count("plain argument")


@pytest.mark.parametrize(
    ("source", "args"),
    [
        (PLAIN, ["-W", "error"]),
        (PLAIN, ["--ollama-off"]),
        (PLAIN.replace('"a:1", "b:1"', '"fake", "none"'), []),
        (PLAIN.replace('"a:1", "b:1"', "1, 2"), []),
        (PLAIN.replace('"a:1", "b:1"', '"http://a:1/?", "= b"'), []),
    ],
    ids=["errors", "off", "no tag", "numbers", "no names"],
)
def test_a_plain_argument_that_may_be_anything_is_no_matter_of_ours(
    suite: Suite, source: str, args: list[str]
) -> None:
    suite.write({"test_it.py": source})
    run = suite.run(*args)
    assert {"passed": 2} == run.counts
    assert "plain argument" not in run.out
