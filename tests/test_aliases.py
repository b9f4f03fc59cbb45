"""Roles, capabilities, pins and cloud models, as a run meets them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, Suite

CHAT = ScriptedModel("llama3.2:1b", present=True, digest="0a109f42" * 8)
EMBED = ScriptedModel("nomic-embed-text", present=True, capabilities=("embedding",))
TOOLS = ScriptedModel("qwen3:0.6b", present=True, capabilities=("completion", "tools"))
WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])

ROLES = {
    "test_rag.py": """
        import pytest

        @pytest.mark.requires_model("chat")
        def test_chat(ollama_model, ollama_options):
            assert ("llama3.2:1b", {"num_ctx": 2048}) == (ollama_model, ollama_options)

        @pytest.mark.requires_model("chat", "embed")
        def test_both(ollama_model, ollama_models):
            assert "llama3.2:1b" == ollama_model == ollama_models["CHAT"].name
            assert "nomic-embed-text" == ollama_models["embed"].name
            assert ["chat", "embed"] == list(ollama_models)

        @pytest.mark.parametrize("ollama_model", ["chat", "qwen3:0.6b"], indirect=True)
        def test_each(ollama_model, ollama_options):
            assert ollama_model in ("llama3.2:1b", "qwen3:0.6b")
    """
}


@pytest.fixture
def models(suite: Suite) -> Suite:
    """A suite whose server has a model for chat, one for embedding, and one with tools."""
    for model in (CHAT, EMBED, TOOLS):
        suite.ollama.add(model)
    return suite


def names(suite: Suite) -> list[str]:
    return sorted(load.model for load in suite.ollama.loads)


# Roles


@WORKERS
def test_a_alias_stands_wherever_a_model_can(models: Suite, workers: list[str]) -> None:
    models.write(ROLES)
    aliases = [
        "--ollama-alias=chat=llama3.2:1b,num_ctx=2048",
        "--ollama-alias=embed=nomic-embed-text",
    ]
    run = models.run(*aliases, *workers)
    assert {"passed": 4} == run.counts
    assert ["llama3.2:1b", "nomic-embed-text:latest", "qwen3:0.6b"] == names(models)
    (chat,) = (one for one in models.ollama.loads if one.model == "llama3.2:1b")
    assert 2048 == chat.options["num_ctx"]


def test_aliases_of_a_file_and_one_of_the_command_line_that_goes_before(models: Suite) -> None:
    models.write(
        {
            "pyproject.toml": """
                [tool.pytest.ini_options]
                ollama_alias = ["chat=qwen3:0.6b", "embed=nomic-embed-text"]
            """,
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("chat", "embed")
                def test_it(ollama_models):
                    assert "llama3.2:1b" == ollama_models["chat"].name
            """,
        }
    )
    assert {"passed": 1} == models.run("--ollama-alias=chat=llama3.2:1b").counts
    assert ["llama3.2:1b", "nomic-embed-text:latest"] == names(models)


def test_a_slip_of_an_alias_is_an_error_and_no_model(models: Suite) -> None:
    models.write(
        {
            "test_it.py": """
                import pytest

                def test_it(ollama_models):
                    message = "no alias 'chatt': did you mean 'chat'. Listed are chat, embed"
                    with pytest.raises(KeyError, match=message):
                        ollama_models["chatt"]
                    # The model that an alias means can be named by its own name.
                    assert "llama3.2:1b" == ollama_models["llama3.2:1b"].name
            """,
        }
    )
    listed = ["--ollama-alias=chat=llama3.2:1b", "--ollama-alias=embed=nomic-embed-text"]
    assert {"passed": 1} == models.run(*listed).counts
    assert "chatt" not in {one.model for one in models.ollama.requests}


def test_a_alias_can_be_listed_and_its_variant_is_a_model_of_its_own(models: Suite) -> None:
    models.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("chat")
                def test_it(ollama_model): pass

                @pytest.mark.requires_model("chat,num_ctx=512")
                def test_variant(ollama_options):
                    assert {"num_ctx": 512} == ollama_options
            """
        }
    )
    run = models.run("--ollama-alias=chat=llama3.2:1b", "--ollama-preload=chat")
    assert {"passed": 2} == run.counts
    # Both have one place in memory, and it is the first one's.
    assert [4096] == [load.options["num_ctx"] for load in models.ollama.loads]
    assert any(one.startswith("llama3.2:1b,num_ctx=512 is not loaded yet: ") for one in run.ours)


def test_a_word_that_the_server_lacks_may_be_a_alias(models: Suite) -> None:
    models.write(
        {"test_it.py": "import pytest\n@pytest.mark.requires_model('judge')\ndef test_it(): pass\n"}
    )
    run = models.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "; for an alias add --ollama-alias judge=MODEL." in run.out


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        (["chat"], "'chat' (from --ollama-alias): expected NAME=SPEC, such as chat=llama3.2:1b"),
        (["chat=a", "chat=b"], "chat is given twice with different models"),
        (["chat=a", "b=chat"], "chat is an alias itself"),
        (["chat=chat"], "an alias cannot mean itself"),
    ],
)
def test_a_bad_alias_is_a_usage_error(models: Suite, aliases: list[str], message: str) -> None:
    models.write(ROLES)
    run = models.run(*(f"--ollama-alias={one}" for one in aliases))
    assert 4 == run.ret
    assert message in run.err
    assert "Traceback" not in run.err + run.out


# Capabilities


CALLS_TOOLS = {
    "test_tools.py": """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b", capabilities=["tools"])
        def test_calls(): pass

        @pytest.mark.requires_model("llama3.2:1b")
        def test_talks(): pass

        @pytest.mark.requires_model("qwen3:0.6b", capabilities="tools")
        def test_other(): pass
    """
}


@WORKERS
def test_a_test_whose_model_cannot_do_what_it_needs_does_not_run(
    models: Suite, workers: list[str]
) -> None:
    models.write(CALLS_TOOLS)
    run = models.run("-rs", *workers)
    assert {"passed": 2, "skipped": 1} == run.counts
    said = (
        "llama3.2:1b cannot do tools: the server says it can do completion. [lacks-capability]\n"
        "wanted by test_tools.py::test_calls: 1 test skipped\n"
        "→ Use a model that can, or change capabilities= of the mark."
    )
    # Before the tests, and in a few words with the test that is skipped.
    assert [said] == [one for one in run.ours if "cannot do" in one]
    assert "SKIPPED [1] test_tools.py:" in run.out
    assert ": llama3.2:1b: cannot do tools" in run.out


def test_what_one_test_asks_of_a_listed_model_does_not_end_the_run(models: Suite) -> None:
    models.write(CALLS_TOOLS)
    run = models.run("--ollama-preload=llama3.2:1b")
    assert {"passed": 2, "skipped": 1} == run.counts


def test_capabilities_of_no_model_in_particular_are_an_error(models: Suite) -> None:
    models.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model(capabilities=["vision"])
                def test_it(): pass
            """
        }
    )
    run = models.run("--ollama-preload=llama3.2:1b qwen3:0.6b")
    assert {"error": 1} == run.counts
    assert "test_it uses capabilities without naming a model, and 2 are listed" in run.out


def test_a_capability_that_no_server_knows_is_named_as_such(models: Suite) -> None:
    models.write({name: text.replace("tools", "telepathy") for name, text in CALLS_TOOLS.items()})
    run = models.run()
    assert "Servers know completion, tools, insert," in run.out
    assert "(v0.33), not telepathy." in run.out


def test_a_missing_capability_ends_the_run_where_that_is_asked(models: Suite) -> None:
    models.write(CALLS_TOOLS)
    run = models.run("--ollama-on-unavailable=exit")
    assert 2 == run.ret
    assert "llama3.2:1b cannot do tools" in run.out


@WORKERS
def test_a_server_that_does_not_tell_capabilities_is_believed(
    models: Suite, workers: list[str]
) -> None:
    models.ollama.state.tells_capabilities = False
    models.write(CALLS_TOOLS)
    run = models.run(*workers)
    assert {"passed": 3} == run.counts
    assert 2 == len([one for one in run.ours if "unknown what it can do" in one])


def test_an_embedding_model_of_a_server_that_does_not_tell_is_warmed_all_the_same(
    models: Suite,
) -> None:
    models.ollama.state.tells_capabilities = False
    models.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    assert {"passed": 1} == models.run("--ollama-preload=nomic-embed-text").counts
    assert ["nomic-embed-text:latest"] == names(models)


# Pins


@WORKERS
def test_a_pin_that_fits_is_a_model_like_any_other(models: Suite, workers: list[str]) -> None:
    models.write(
        {"test_it.py": "def test_it(ollama_model): assert 'llama3.2:1b' == ollama_model\n"}
    )
    run = models.run("--ollama-preload=llama3.2:1b@sha256:0a109f420a", "-v", *workers)
    assert {"passed": 1} == run.counts
    assert run.table[0].startswith("✓ llama3.2:1b@sha256:0a109f420a   loaded in ")
    assert "digest as pinned" in run.table[0]


@WORKERS
def test_another_digest_than_the_pinned_one_prints_both(models: Suite, workers: list[str]) -> None:
    models.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b@sha256:c3d4c3d4")
                def test_it(): pass
            """
        }
    )
    run = models.run("-rs", *workers)
    assert {"skipped": 1} == run.counts
    digest = CHAT.digest
    assert f"the server has sha256:{digest}, pinned is sha256:c3d4c3d4." in run.out
    assert "Run pytest with --ollama-pull=always if the registry has the pinned one" in run.out
    assert [] == models.ollama.loads


def test_a_model_that_was_pulled_is_held_to_its_pin(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, digest="ab" * 32))
    suite.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    run = suite.run("--ollama-preload=llama3.2:1b@sha256:c3d4c3d4")
    assert 2 == run.ret
    assert "is another version than the pinned one" in run.err
    assert 1 == len(suite.ollama.pulls)


# The cloud


@WORKERS
@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "stub:7b"])
def test_a_model_of_the_cloud_is_checked_and_neither_pulled_nor_warmed(
    suite: Suite, workers: list[str], name: str
) -> None:
    suite.ollama.add(ScriptedModel(name, present=True, remote_host="https://ollama.com:443"))
    suite.write({"test_it.py": f"def test_it(ollama_model): assert {name!r} == ollama_model\n"})
    run = suite.run(f"--ollama-preload={name}", "--ollama-pull=always", "-v", *workers)
    assert {"passed": 1} == run.counts
    assert "runs in the cloud, not warmed" in run.table[0]
    asked = {one.path for one in suite.ollama.requests}
    assert not asked & {"/api/pull", "/api/generate", "/api/chat", "/api/embed"}


def test_a_model_of_the_cloud_that_the_server_lacks_is_not_pulled(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    run = suite.run("--ollama-preload=gpt-oss:120b-cloud", "--ollama-on-unavailable=skip", "-rs")
    assert {"skipped": 1} == run.counts
    assert "Sign it in with 'ollama signin'; models of the cloud are never pulled." in run.out
    assert [] == suite.ollama.pulls
