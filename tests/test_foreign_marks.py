"""Suites that have a mark requires_model of their own, and nothing to do with Ollama."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import LLAMA, Suite

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
INI = "[pytest]\nmarkers =\n    requires_model(name, size=None): needs trained weights on disk\n"
CONFTEST = """
    def pytest_configure(config):
        config.addinivalue_line("markers", "requires_model: a spaCy pipeline must be installed")
"""
THEIRS = """
    import pytest

    @pytest.mark.requires_model
    def test_bare(): pass

    @pytest.mark.requires_model("en_core_web_sm")
    def test_named(): pass

    @pytest.mark.requires_model(name="whisper-base", size=3)
    def test_keyword(): pass

    @pytest.mark.requires_model(object(), 5)
    class TestClass:
        def test_in_class(self): pass
"""


@pytest.fixture(params=["ini", "conftest"])
def theirs(suite: Suite, request: pytest.FixtureRequest) -> Suite:
    """A suite that registers the mark for something else."""
    suite.write({"test_it.py": THEIRS})
    suite.write({"pytest.ini": INI} if request.param == "ini" else {"conftest.py": CONFTEST})
    return suite


@WORKERS
def test_the_suite_runs_as_without_us(
    theirs: Suite, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    # What only says how is no word about the suite.
    run = theirs.run("--ollama-wait=1", *workers)
    assert ({"passed": 4}, []) == (run.counts, theirs.ollama.requests)
    assert "ollama" not in run.out.replace("plugins: ollama-warmup", "")


def test_it_is_selected_by_as_the_suite_means_it(theirs: Suite) -> None:
    assert {"passed": 4} == theirs.run("-m", "requires_model").counts


@WORKERS
# The short name too: the test gets one of our fixtures.
@pytest.mark.parametrize("name", ["requires_ollama_model", "requires_model"])
def test_a_test_there_is_ours_by_the_long_name_or_by_a_fixture(
    theirs: Suite, workers: list[str], name: str
) -> None:
    theirs.ollama.add(replace(LLAMA, present=True))
    theirs.write(
        {
            "test_chat.py": f"""
                import pytest

                @pytest.mark.{name}("llama3.2:1b")
                def test_chat(ollama_model):
                    assert "llama3.2:1b" == ollama_model
            """
        }
    )
    run = theirs.run("--strict-markers", *workers)
    assert ({"passed": 5}, 1) == (run.counts, len(theirs.ollama.loads))
    # What gets one of our fixtures is selected by the name that is ours.
    assert {"passed": 1} == theirs.run("-m", "requires_ollama_model").counts


@pytest.mark.parametrize(
    "configured",
    [
        ["--ollama-preload=llama3.2:1b"],
        ["-o", "ollama_preload=llama3.2:1b"],
        ["--ollama-alias=chat=llama3.2:1b"],
        ["--ollama-host=127.0.0.1:9"],
        ["-o", "ollama_pull=never"],
    ],
)
def test_where_the_plugin_is_configured_the_short_name_is_ours(
    suite: Suite, configured: list[str]
) -> None:
    suite.write({"pytest.ini": INI})
    suite.write(
        {"test_it.py": 'import pytest\n@pytest.mark.requires_model("nix:1")\ndef test_it(): pass\n'}
    )
    run = suite.run("--ollama-on-unavailable=skip", "--ollama-wait=0", *configured)
    assert {"skipped": 1} == run.counts


def test_where_the_suite_speaks_of_ollama_the_short_name_is_ours(suite: Suite) -> None:
    text = "requires_model(name): needs a model of the local Ollama server"
    suite.write({"pytest.ini": f"[pytest]\nmarkers =\n    {text}\n"})
    suite.write(
        {"test_it.py": 'import pytest\n@pytest.mark.requires_model("nix:1")\ndef test_it(): pass\n'}
    )
    assert {"skipped": 1} == suite.run().counts


def test_a_longer_name_of_theirs_takes_nothing(suite: Suite) -> None:
    suite.write({"pytest.ini": "[pytest]\nmarkers =\n    requires_model_server: theirs\n"})
    suite.write(
        {"test_it.py": 'import pytest\n@pytest.mark.requires_model("nix:1")\ndef test_it(): pass\n'}
    )
    assert {"skipped": 1} == suite.run().counts


@WORKERS
def test_elsewhere_both_names_mean_the_same(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            "test_it.py": """
                import pytest

                pytestmark = pytest.mark.requires_ollama_model("llama3.2:1b", capabilities=["completion"])

                def test_it(ollama_model):
                    assert "llama3.2:1b" == ollama_model
            """
        }
    )
    run = suite.run("--strict-markers", *workers)
    assert ({"passed": 1}, 1) == (run.counts, len(suite.ollama.loads))
    assert "1 deselected" in suite.run("-m", "not requires_model").out
