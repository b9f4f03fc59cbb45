"""The fixture ``ollama_emulator``, as users have it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Suite

TOP = Path(__file__).parents[1]
EXAMPLES = TOP / "docs" / "examples" / "emulator"
PAGE = TOP / "docs" / "how-to" / "emulator.md"
ASK = """
    import os

    import httpx
    import ollama

    HELLO = [{"role": "user", "content": "Hi"}]

    def ask(model="m"):
        return ollama.Client().chat(model, HELLO)["message"]["content"]
"""
ONE = """
    from ask import ask

    def test_it(ollama_emulator):
        ollama_emulator.model("m", answer="emulated")
        assert ask() == "emulated"
"""


MARKED = f"""
    import pytest

    pytestmark = pytest.mark.requires_model("llama3.2:1b")
    {ONE}"""
WARNING = "OllamaWarmupWarning"


@pytest.fixture
def nowhere(suite: Suite, nobody: str, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite in whose environment no Ollama answers."""
    monkeypatch.setenv("OLLAMA_HOST", nobody)
    suite.write({"ask.py": ASK})
    return suite


@pytest.fixture
def spoiled(suite: Suite) -> Suite:
    """A suite next to a real Ollama that must hear nothing of emulated tests."""
    suite.write({"ask.py": ASK})
    return suite


# What it needs, and what it leaves alone


@pytest.mark.parametrize("args", [[], ["-n2"], ["--ollama-off"]], ids=["alone", "xdist", "off"])
def test_it_needs_no_ollama(nowhere: Suite, args: list[str]) -> None:
    nowhere.write({"test_it.py": ONE})
    run = nowhere.run(*args)
    assert {"passed": 1} == run.counts
    assert [] == run.ours
    assert WARNING not in run.out


def test_no_request_of_it_reaches_the_server_of_the_run(spoiled: Suite) -> None:
    spoiled.write({"test_it.py": ONE})
    assert {"passed": 1} == spoiled.run().counts
    assert [] == spoiled.ollama.requests


def test_it_is_not_marked_as_needing_a_model(nowhere: Suite) -> None:
    also = """
        def test_client(ollama_emulator, ollama_client):
            pass
    """
    nowhere.write({"test_it.py": ONE, "test_also.py": also})
    assert {"passed": 2} == nowhere.run("-m", "not requires_model").counts


def test_a_mark_of_its_module_is_not_meant(nowhere: Suite) -> None:
    nowhere.write({"test_it.py": MARKED})
    run = nowhere.run("--ollama-on-unavailable=exit")
    assert ({"passed": 1}, []) == (run.counts, run.ours)


def test_it_may_be_wrapped_by_a_fixture_of_the_suite(nowhere: Suite) -> None:
    conftest = """
        import pytest

        @pytest.fixture
        def ollama_emulator(ollama_emulator):
            ollama_emulator.model("m", answer="theirs")
            return ollama_emulator

        @pytest.fixture
        def slow(ollama_emulator):
            ollama_emulator.model("m", answer="slow")
    """
    tests = """
        import pytest
        from ask import ask

        pytestmark = pytest.mark.requires_model

        def test_a(ollama_emulator):
            assert ask() == "theirs"

        def test_b(slow):
            assert ask() == "slow"
    """
    nowhere.write({"conftest.py": conftest, "test_it.py": tests})
    assert {"passed": 2} == nowhere.run().counts


def test_tests_that_need_a_model_go_on_as_ever(spoiled: Suite) -> None:
    tests = """
        import os
        import pytest
        from ask import ask

        BEFORE = os.environ["OLLAMA_HOST"]

        @pytest.mark.requires_model("llama3.2:1b")
        def test_real():
            assert "emulator" in ask("llama3.2:1b")

        def test_emulated(ollama_emulator):
            ollama_emulator.model("llama3.2:1b", answer="emulated")
            assert ask("llama3.2:1b") == "emulated"
            assert os.environ["OLLAMA_HOST"] in ollama_emulator.url

        @pytest.mark.requires_model("llama3.2:1b")
        def test_real_again():
            assert os.environ["OLLAMA_HOST"] == BEFORE
            assert "emulator" in ask("llama3.2:1b")
    """
    spoiled.write({"test_it.py": tests})
    run = spoiled.run("--ollama-pull=missing")
    assert {"passed": 3} == run.counts
    assert WARNING not in run.out
    assert ["llama3.2:1b"] == [load.model for load in spoiled.ollama.loads]
    assert 2 == len(spoiled.ollama.calls("chat"))
    assert re.search(r"llama3.2:1b .* 2 tests", run.out)


def test_a_host_fixture_of_the_suite_is_not_asked_for_it(spoiled: Suite) -> None:
    conftest = """
        import pytest

        @pytest.fixture(scope="session")
        def ollama_host():
            raise RuntimeError("no container here")
    """
    spoiled.write({"conftest.py": conftest, "test_it.py": MARKED})
    assert {"passed": 1} == spoiled.run("--ollama-pull=missing").counts
    assert [] == spoiled.ollama.requests


# What talks to it


def test_clients_that_were_there_before_talk_to_it_until_the_test_ends(spoiled: Suite) -> None:
    tests = """
        import ollama
        import pytest
        from ask import HELLO

        async def chat(client):
            return await client.chat("llama3.2:1b", HELLO)

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("again", [1, 2])
        def test_real(ollama_client, again):
            assert "emulator" in ollama_client.chat("llama3.2:1b", HELLO)["message"]["content"]
            assert "emulator" in ollama.chat("llama3.2:1b", HELLO)["message"]["content"]

        def test_emulated(ollama_emulator, ollama_client):
            ollama_emulator.model("llama3.2:1b", answer="sync")
            assert ollama_client.chat("llama3.2:1b", HELLO)["message"]["content"] == "sync"
            assert ollama.chat("llama3.2:1b", HELLO)["message"]["content"] == "sync"
            assert len(ollama_emulator.calls("chat")) == 2

        def test_emulated_too(ollama_emulator, ollama_async_client):
            import asyncio
            ollama_emulator.model("llama3.2:1b", answer="async")
            answer = asyncio.run(chat(ollama_async_client))
            assert answer["message"]["content"] == "async"

        @pytest.mark.requires_model("llama3.2:1b")
        def test_real_again(ollama_client):
            assert "emulator" in ollama_client.chat("llama3.2:1b", HELLO)["message"]["content"]
            assert "emulator" in ollama.chat("llama3.2:1b", HELLO)["message"]["content"]
    """
    spoiled.write({"test_it.py": tests})
    assert {"passed": 5} == spoiled.run("--ollama-pull=missing").counts
    assert 6 == len(spoiled.ollama.calls("chat"))


def test_a_library_that_is_imported_in_the_test_does_not_keep_its_address(spoiled: Suite) -> None:
    tests = """
        def test_emulated(ollama_emulator):
            from ask import ollama, HELLO
            ollama_emulator.model("llama3.2:1b", answer="emulated")
            assert ollama.chat("llama3.2:1b", HELLO)["message"]["content"] == "emulated"

        def test_real():
            from ask import ollama, HELLO
            assert "emulator" in ollama.chat("llama3.2:1b", HELLO)["message"]["content"]
    """
    spoiled.write({"test_it.py": tests})
    assert {"passed": 2} == spoiled.run("--ollama-preload=llama3.2:1b", fresh=True).counts


def test_it_works_without_the_official_client(nowhere: Suite) -> None:
    tests = """
        import os
        import sys
        import urllib.request

        sys.modules["ollama"] = None

        def test_it(ollama_emulator):
            with urllib.request.urlopen(f"http://{os.environ['OLLAMA_HOST']}/api/version") as answer:
                assert answer.status == 200
            assert ["/api/version"] == [one.path for one in ollama_emulator.requests]
    """
    nowhere.write({"test_it.py": tests})
    assert {"passed": 1} == nowhere.run().counts


def test_exported_variables_name_it_too(nowhere: Suite) -> None:
    tests = """
        import os

        BEFORE = os.environ["OPENAI_BASE_URL"]

        def test_it(ollama_emulator):
            assert os.environ["OPENAI_BASE_URL"] == f"{ollama_emulator.url}/v1"

        def test_after():
            assert os.environ["OPENAI_BASE_URL"] == BEFORE
    """
    nowhere.write({"test_it.py": tests})
    run = nowhere.run("--ollama-export=OPENAI_BASE_URL={openai_base_url}")
    assert {"passed": 2} == run.counts


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        ("ollama_host", "ollama_host leads to the server of this run, not to ollama_emulator."),
        ("ollama_openai_base_url", "ollama_host and ollama_openai_base_url lead to the server"),
        ("ollama_models", "Use ollama_emulator.url as the address, and the name of a model that"),
    ],
)
def test_what_leads_to_the_server_of_the_run_is_refused(
    nowhere: Suite, fixture: str, words: str
) -> None:
    nowhere.write({"test_it.py": f"def test_it({fixture}, ollama_emulator): pass"})
    run = nowhere.run()
    assert {"error": 1} == run.counts
    assert words in run.out


def test_a_client_of_the_suites_own_is_left_to_the_suite(nowhere: Suite) -> None:
    conftest = """
        import pytest

        @pytest.fixture
        def ollama_client():
            return "theirs"
    """
    nowhere.write({"conftest.py": conftest})
    nowhere.write({"test_it.py": "def test_it(ollama_emulator, ollama_client): pass"})
    assert {"passed": 1} == nowhere.run().counts


def test_an_argument_that_names_a_model_is_no_mistake(nowhere: Suite) -> None:
    test = """
        import pytest

        @pytest.mark.parametrize("ollama_model", ["llama3.2:1b"])
        def test_it(ollama_emulator, ollama_model):
            ollama_emulator.model(ollama_model)
    """
    nowhere.write({"test_it.py": test})
    run = nowhere.run()
    assert {"passed": 1} == run.counts
    assert WARNING not in run.out


def test_fixtures_lists_it(nowhere: Suite) -> None:
    out = nowhere.run("--fixtures").out
    assert re.search(r"ollama_emulator -- .*\n    Emulated Ollama for one test", out)


# The page


@pytest.mark.parametrize("name", ["slow_load", "faults", "restart", "module"])
def test_each_example_runs_without_ollama(nowhere: Suite, name: str) -> None:
    shutil.copy(EXAMPLES / "chat.py", nowhere.pytester.path)
    shutil.copy(EXAMPLES / f"test_{name}.py", nowhere.pytester.path)
    run = nowhere.run()
    assert WARNING not in run.out
    (outcome,) = run.counts
    assert "passed" == outcome


def test_the_page_shows_each_example() -> None:
    included = re.findall(r"literalinclude\} \.\./examples/emulator/(\S+)", PAGE.read_text("utf-8"))
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(included)
