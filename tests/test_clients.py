"""The official clients as fixtures, and models that are looked up at run time, also in async tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, Suite

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
LIST = "--ollama-preload=llama3.2:1b"
EMBED = ScriptedModel("embed:a", present=True, capabilities=("embedding",))
# A connection or a loop that is left open is an error of the test that runs then.
STRICT = ("-W", "error")
LOOPS: dict[str, list[str]] = {
    "anyio": [],
    "asyncio": ["-o", "asyncio_default_fixture_loop_scope=function"],
}


@pytest.fixture
def models(suite: Suite) -> Suite:
    """A suite whose server has a model for chat and one for embedding."""
    suite.ollama.add(replace(LLAMA, present=True))
    suite.ollama.add(EMBED)
    return suite


SYNC = """
    import gc

    def test_client(ollama_client, ollama_model):
        assert ollama_client.generate(ollama_model, "Hello").response

    def test_stream(ollama_client, ollama_model):
        parts = ollama_client.chat(ollama_model, [{"role": "user", "content": "Hi"}], stream=True)
        assert next(iter(parts)).message.content

    def test_end():
        gc.collect()
"""

# Without any plugin that has loops.
ASYNC = """
    import asyncio, gc, pytest

    def test_async(ollama_async_client, ollama_model):
        async def main():
            first = await ollama_async_client.generate(ollama_model, "Hello")
            messages = [{"role": "user", "content": "Hi"}]
            parts = await ollama_async_client.chat(ollama_model, messages, stream=True)
            return first.response, [part.message.content async for part in parts]

        first, parts = asyncio.run(main())
        assert first and parts

    def test_end():
        gc.collect()
"""


@WORKERS
@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
def test_the_official_client_meets_a_warm_model_and_leaves_nothing_open(
    models: Suite, workers: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody listens there: it must not stand between the client and a loopback address.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    models.write({"test_it.py": text})
    run = models.run(LIST, *STRICT, *workers)
    assert set(run.counts) == {"passed"}
    assert "Warning" not in run.out + run.err
    assert 1 == len(models.ollama.loads)


@WORKERS
@pytest.mark.parametrize("plugin", LOOPS)
def test_async_tests_get_clients_and_models(models: Suite, workers: list[str], plugin: str) -> None:
    models.write(
        {
            "test_it.py": f"""
                import gc, pytest

                @pytest.fixture
                def anyio_backend():
                    return "asyncio"

                @pytest.fixture(scope="session")
                def embedder(ollama_models):
                    return ollama_models["embed:a"].name

                @pytest.mark.{plugin}
                @pytest.mark.parametrize("n", range(3))
                async def test_it(ollama_async_client, ollama_models, embedder, n):
                    name = ollama_models["llama3.2:1b"].name
                    answer = await ollama_async_client.embed(embedder, "Hello")
                    assert answer.embeddings
                    assert (await ollama_async_client.generate(name, "Hello")).response

                def test_end():
                    gc.collect()
            """
        }
    )
    # pytest warns when a plugin has the name of a module that is imported already, as asyncio has.
    run = models.run("-p", plugin, *LOOPS[plugin], *STRICT, *workers, fresh=True)
    assert {"passed": 4} == run.counts
    assert {"embed:a", "llama3.2:1b"} == {load.model for load in models.ollama.loads}
    assert 2 == len(models.ollama.loads)


def test_without_the_official_client_the_test_says_what_to_install(models: Suite) -> None:
    models.write(
        {
            "conftest.py": "import sys\nsys.modules['ollama'] = None\n",
            "test_it.py": """
                def test_sync(ollama_client): pass
                def test_async(ollama_async_client): pass
            """,
        }
    )
    run = models.run()
    assert {"error": 2} == run.counts
    for name in ("ollama_client", "ollama_async_client"):
        assert (
            f"{name} needs the official client: pip install ollama (or pytest-ollama-warmup[client])"
        ) in run.out
    assert "ModuleNotFoundError" not in run.out


def test_who_gets_a_client_needs_ollama(models: Suite) -> None:
    models.write({"test_it.py": SYNC, "test_async.py": ASYNC})
    assert {"passed": 2} == models.run("-m", "not requires_model").counts
    assert [] == models.ollama.requests


THEIRS = """
    import pytest

    @pytest.fixture
    def ollama_client(): return "theirs"

    @pytest.fixture
    def ollama_async_client(): return "theirs"

    @pytest.fixture(params=["a", "b"])
    def ollama_model(request): return request.param

    @pytest.fixture(scope="module")
    def ollama_models(): return ["theirs"]

    @pytest.fixture
    def ollama_options(): return None

    @pytest.fixture(scope="session")
    def ollama_server(): return "theirs"
"""


@WORKERS
def test_fixtures_of_the_same_names_that_are_not_ours_do_no_harm(
    models: Suite, workers: list[str]
) -> None:
    models.write(
        {
            "conftest.py": THEIRS,
            "test_it.py": """
                def test_it(
                    ollama_client, ollama_async_client, ollama_model, ollama_models, ollama_options,
                    ollama_server,
                ):
                    assert "theirs" == ollama_client == ollama_async_client == ollama_server
                    assert ["theirs"] == ollama_models
                    assert ollama_model in "ab"
            """,
        }
    )
    run = models.run(*workers)
    assert ({"passed": 2}, [], []) == (run.counts, run.ours, models.ollama.requests)


@WORKERS
def test_a_fixture_of_theirs_beside_one_of_ours(models: Suite, workers: list[str]) -> None:
    models.write(
        {
            "conftest.py": THEIRS,
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_client, ollama_host):
                    assert "theirs" == ollama_client
                    assert ollama_host.startswith("http://127.0.0.1:")
            """,
        }
    )
    assert {"passed": 1} == models.run(*workers).counts
    assert ["llama3.2:1b"] == [load.model for load in models.ollama.loads]


@WORKERS
def test_session_fixtures_of_all_workers_bring_a_model_once(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(LLAMA)
    suite.write(
        {
            "conftest.py": """
                import pytest

                @pytest.fixture(scope="session")
                def llm(ollama_models):
                    return ollama_models["llama3.2:1b"]
            """,
            "test_it.py": """
                import pytest

                @pytest.mark.parametrize("n", range(6))
                def test_it(llm, n):
                    assert ("llama3.2:1b", 1_300_000) == (llm.name, llm.size)
            """,
        }
    )
    run = suite.run("--ollama-pull=missing", *workers)
    assert {"passed": 6} == run.counts
    assert (1, 1) == (len(suite.ollama.pulls), len(suite.ollama.loads))
    assert run.table[0].startswith("✓ llama3.2:1b   pulled 1.3 MB in")
