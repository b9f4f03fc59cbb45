"""Tests that the suite itself skips at set-up: the next run downloads nothing for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.conftest import LLAMA, Suite
from tests.test_guard import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
# GATE decides what is closed; the last fixture uses the model before the test does.
CONFTEST = """
    import os
    import pytest
    from tools import ask

    def closed(where):
        return where in os.environ.get("GATE", "").split(",")

    def pytest_runtest_setup(item):
        if closed("hook"):
            pytest.skip("needs --run-live")
        if closed("looks"):
            pytest.skip("the model is not installed")
        if closed("names"):
            pytest.skip("needs Llama3.2")

    @pytest.fixture(scope="session")
    def of_session():
        if closed("session"):
            pytest.skip("live tests are off")

    @pytest.fixture
    def gate(of_session, request):
        if closed("fixture"):
            pytest.skip("live tests are off")
        if closed("each"):
            pytest.skip(f"{request.node.name} is off")
        if closed("one") and request.node.name == "test_tone":
            pytest.skip("off")

    @pytest.fixture
    def greeting(gate):
        return ask("llama3.2:1b")
"""
TESTS = """
    import pytest

    pytestmark = pytest.mark.requires_model("llama3.2:1b")

    def test_tone(greeting): assert greeting
    def test_length(greeting): assert greeting
"""
LEFT = "llama3.2:1b is not prepared: all 2 tests that need it skipped at set-up in the last run"


@pytest.fixture
def suite(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite in CI, where what is wanted is pulled, with a gate that is open."""
    monkeypatch.setenv("CI", "true")
    suite.write({"tools.py": TOOLS, "conftest.py": CONFTEST, "test_it.py": TESTS})
    return suite


def forget(suite: Suite) -> None:
    """Have the server lose the model, and the log of what was asked."""
    suite.ollama.unload("llama3.2:1b")
    suite.ollama.add(LLAMA)
    suite.ollama.forget()


def close(monkeypatch: pytest.MonkeyPatch, gate: str) -> None:
    monkeypatch.setenv("GATE", gate)


@WORKERS
@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("hook", "needs --run-live"),
        ("fixture", "live tests are off"),
        ("session", "live tests are off"),
    ],
)
def test_nothing_is_asked_for_tests_that_all_skipped_in_the_last_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, gate: str, reason: str, workers: list[str]
) -> None:
    close(monkeypatch, gate)
    first = suite.run(*workers)
    assert ({"skipped": 2}, 1) == (first.counts, len(suite.ollama.pulls))
    assert "not prepared" not in first.out
    for _ in range(2):
        forget(suite)
        later = suite.run(*workers)
        assert ({"skipped": 2}, []) == (later.counts, suite.ollama.requests)
        assert any(line.startswith(f"{LEFT} ({reason}).") for line in later.ours), later.out
    close(monkeypatch, "")
    opened = suite.run(*workers)
    assert ({"passed": 2}, 1) == (opened.counts, len(suite.ollama.pulls))
    assert 1 == len(suite.ollama.loads)
    # And what has run is prepared before the tests again.
    forget(suite)
    again = suite.run(*workers)
    assert ({"passed": 2}, 1) == (again.counts, len(suite.ollama.pulls))
    assert "not prepared" not in again.out


def left_out(suite: Suite, *args: str) -> bool:
    """Whether a second run, on a server without the model, pulls nothing."""
    suite.run(*args)
    forget(suite)
    said = "not prepared" in suite.run(*args).out
    assert said == (not suite.ollama.pulls)
    return said


@pytest.mark.parametrize(
    ("gate", "args"),
    [
        ("each", []),
        ("one", []),
        ("", []),
        ("hook", ["-pno:cacheprovider"]),
        ("hook", ["--cache-clear"]),
        ("hook", ["--ollama-preload=llama3.2:1b"]),
    ],
)
def test_otherwise_the_model_is_pulled(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, gate: str, args: list[str]
) -> None:
    close(monkeypatch, gate)
    assert not left_out(suite, *args)


def test_a_test_that_was_not_there_has_the_model_pulled(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, "hook")
    suite.run("test_it.py::test_tone")
    forget(suite)
    assert "not prepared" not in suite.run().out
    assert 1 == len(suite.ollama.pulls)
    forget(suite)
    assert LEFT in suite.run().out


def test_a_model_of_the_configuration_file_is_left_too(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write({"pytest.ini": "[pytest]\nollama_preload = llama3.2:1b,num_ctx=2048\n"})
    close(monkeypatch, "fixture")
    suite.run()
    # Nor is it asked for before conftests are imported: it is there.
    suite.ollama.unload("llama3.2:1b")
    suite.ollama.forget()
    assert "llama3.2:1b,num_ctx=2048 is not prepared" in suite.run().out
    assert [] == suite.ollama.requests


@pytest.mark.parametrize("pull", ["never", "missing"])
def test_a_gate_that_opens_does_what_is_to_be_done_about_a_missing_model(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, pull: str
) -> None:
    close(monkeypatch, "fixture")
    assert left_out(suite)
    close(monkeypatch, "")
    run = suite.run(f"--ollama-pull={pull}")
    assert ({"error": 2} if pull == "never" else {"passed": 2}) == run.counts
    assert ("llama3.2:1b is not pulled" in run.out) == (pull == "never")


@pytest.mark.parametrize(
    ("gate", "known"),
    [("hook", True), ("looks", False), ("names", False)],
)
def test_a_reason_that_may_be_gone_with_the_model_counts_only_where_it_was_there(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, gate: str, known: bool
) -> None:
    close(monkeypatch, gate)
    # Outside of CI the model is not pulled; the hook skips before the plugin does.
    monkeypatch.delenv("CI")
    suite.run()
    monkeypatch.setenv("CI", "true")
    run = suite.run()
    assert known == ("not prepared" in run.out)
    assert known == (not suite.ollama.pulls)


def test_our_own_skips_do_not_count(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI")
    assert {"skipped": 2} == suite.run().counts
    monkeypatch.setenv("CI", "true")
    assert {"passed": 2} == suite.run().counts
    assert 1 == len(suite.ollama.pulls)


@WORKERS
@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_skip_by_ollama_models_in_a_fixture_does_not_count(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str], scope: str
) -> None:
    monkeypatch.delenv("CI")
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            "test_late.py": f"""
                import pytest

                @pytest.fixture(scope="{scope}")
                def chat(ollama_models): return ollama_models["chat"]

                def test_tone(chat): pass
                def test_length(chat): pass
            """
        }
    )
    run = suite.run("test_late.py", *workers)
    assert {"skipped": 2} == run.counts
    # No line above the tests said it: nobody knew before one of them ran.
    rows = run.table
    cure = "  → Run 'ollama pull chat', or pytest with --ollama-pull=missing; for an alias add --ollama-alias chat=MODEL."
    assert ["✗ chat   not pulled", "! chat is not pulled. [not-pulled]", cure] == rows
    run = suite.run("--ollama-alias=chat=llama3.2:1b", "test_late.py", *workers)
    assert {"passed": 2} == run.counts
    assert "not-prepared" not in run.out
    assert ["llama3.2:1b"] == [load.model.removesuffix(":latest") for load in suite.ollama.loads]


def test_a_server_that_is_away_is_not_waited_for(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, "hook")
    suite.run()
    suite.ollama.stop()
    run = suite.run()
    assert {"skipped": 2} == run.counts
    assert "waiting for" not in run.out


def test_other_models_are_prepared_as_ever(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    close(monkeypatch, "one")
    other = replace(LLAMA, name="other:1", present=True, digest="b" * 64)
    suite.ollama.add(other)
    suite.write(
        {
            "test_it.py": """
            import pytest

            @pytest.mark.requires_model("llama3.2:1b")
            def test_tone(greeting): pass

            @pytest.mark.requires_model("other:1")
            def test_length(gate): pass
            """
        }
    )
    suite.run()
    forget(suite)
    run = suite.run()
    assert "llama3.2:1b is not prepared: the test that needs it skipped" in run.out
    assert "ollama: other:1 already loaded" in run.out
    assert [] == suite.ollama.pulls


@WORKERS
def test_two_models_behind_one_gate_are_named_together(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, name="other:1", digest="b" * 64))
    suite.write(
        {
            "test_other.py": TESTS.replace("llama3.2:1b", "other:1")
            .replace("greeting", "gate")
            .replace("assert gate", "pass")
        }
    )
    close(monkeypatch, "fixture")
    suite.run(*workers)
    run = suite.run(*workers)
    assert "llama3.2:1b and other:1 are not prepared: all 4 tests that need them skipped" in run.out
    close(monkeypatch, "")
    assert {"passed": 4} == suite.run(*workers).counts


def test_a_cache_that_somebody_has_edited_does_no_harm(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, "hook")
    suite.run()
    path: Path = suite.pytester.path / ".pytest_cache/v/ollama-warmup/skipped"
    assert path.exists()
    for text in ("7", "[]", '{"test_it.py::test_tone": 3}', '{"test_it.py::test_tone": ["a"]}'):
        path.write_text(text, encoding="utf-8")
        run = suite.run()
        assert {"skipped": 2} == run.counts
        assert "not prepared" not in run.out


def test_the_work_in_the_background_leaves_it_too(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, "fixture")
    assert left_out(suite, "--ollama-background")
    close(monkeypatch, "")
    assert {"passed": 2} == suite.run("--ollama-background").counts


def test_groups_go_on_with_the_next_one(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    close(monkeypatch, "fixture")
    suite.ollama.add(replace(LLAMA, name="other:1", present=True, digest="b" * 64))
    other = "import pytest\n@pytest.mark.requires_model('other:1')\ndef test_other(): pass\n"
    suite.write({"test_other.py": other})
    suite.run("--ollama-group-by-model")
    forget(suite)
    suite.ollama.unload("other:1")
    run = suite.run("--ollama-group-by-model")
    assert {"passed": 1, "skipped": 2} == run.counts
    assert "other:1 loaded in" in run.out
    assert [] == suite.ollama.pulls
