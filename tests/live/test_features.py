"""Roles, capabilities, pins, hooks, clients and the command line on a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup import preload

if TYPE_CHECKING:
    from tests.conftest import UserSuite
    from tests.live.conftest import StartServer
    from tests.live.registry import Registry
    from tests.live.server import RealServer

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "system_prompt"
USES = "def test_it(ollama_model): pass\n"


def bring(server: RealServer, registry: Registry, model: str, name: str) -> str:
    """Put a tiny model on the server under a short name, cold; return its digest."""
    server.pull(registry.name(model))
    server.post("/api/copy", {"source": registry.name(model), "destination": name})
    (digest,) = (one["digest"] for one in server.get("/api/tags")["models"] if one["name"] == name)
    return str(digest)


@WORKERS
def test_roles_stand_for_models_with_their_options(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    bring(server, registry, "embed", "embed:a")
    suite.write(
        {
            "test_rag.py": """
                import pytest

                @pytest.mark.requires_model("chat", "embed")
                @pytest.mark.parametrize("n", range(4))
                def test_rag(ollama_client, ollama_models, ollama_model, ollama_options, n):
                    assert ("llama3.2:1b", {"num_ctx": 2048}) == (ollama_model, ollama_options)
                    vector = ollama_client.embed(ollama_models["embed"].name, "Where is it?")
                    assert vector.embeddings
                    answer = ollama_client.generate(ollama_model, "It is", options=ollama_options)
                    assert answer.response
            """
        }
    )
    roles = ["--ollama-alias=chat=llama3.2:1b,num_ctx=2048", "--ollama-alias=embed=embed:a"]
    assert {"passed": 4} == suite.run(*roles, *workers).counts
    assert 2 == server.loads()


def test_capabilities_are_those_that_the_server_tells(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", "plain:a")
    bring(server, registry, "agent", "agent:a")
    suite.write(
        {
            "test_tools.py": """
                import pytest

                @pytest.mark.requires_model("plain:a", capabilities=["tools"])
                def test_plain(): pass

                @pytest.mark.requires_model("agent:a", capabilities=["tools", "thinking"])
                def test_agent(): pass
            """
        }
    )
    run = suite.run("-rs")
    assert {"passed": 1, "skipped": 1} == run.counts
    assert "plain:a cannot do tools" in run.out
    assert "wanted by test_tools.py::test_plain" in run.out
    assert "the server says it can do completion." in run.out


def test_a_pin_is_held_against_the_digest_that_the_server_lists(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    digest = bring(server, registry, "completion", "llama3.2:1b")
    suite.write({"test_it.py": USES})
    run = suite.run(f"--ollama-preload=llama3.2:1b@sha256:{digest[:12]}")
    assert {"passed": 1} == run.counts
    run = suite.run("--ollama-preload=llama3.2:1b@sha256:0a109f42")
    assert 2 == run.ret
    assert f"the server has sha256:{digest}, pinned is sha256:0a109f42." in run.err


def test_a_model_of_the_cloud_is_not_pulled(suite: UserSuite, server: RealServer) -> None:
    suite.write({"test_it.py": USES})
    run = suite.run("--ollama-preload=gpt-oss:120b-cloud", "--ollama-pull=always")
    assert 2 == run.ret
    assert "ollama cloud is disabled" in run.out + run.err
    assert "Sign the server in with 'ollama signin', without OLLAMA_NO_CLOUD." in run.out + run.err
    assert 0 == server.calls("/api/pull")


@WORKERS
def test_the_example_of_a_system_prompt(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    shutil.copytree(EXAMPLE, suite.pytester.path, dirs_exist_ok=True)
    assert {"passed": 2} == suite.run("--ollama-preload=llama3.2:1b", *workers).counts
    assert (3, 1) == (server.calls("/api/chat"), server.loads())


def test_async_tests_meet_a_warm_model_and_leave_nothing_open(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    suite.write(
        {
            "test_it.py": """
                import gc, pytest

                @pytest.mark.asyncio
                @pytest.mark.parametrize("n", range(3))
                async def test_it(ollama_async_client, ollama_model, n):
                    parts = await ollama_async_client.generate(ollama_model, "Say", stream=True)
                    assert [part.response async for part in parts]

                def test_end():
                    gc.collect()
            """
        }
    )
    loop = ["-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function"]
    run = suite.run("--ollama-preload=llama3.2:1b", "-W", "error", *loop)
    assert {"passed": 4} == run.counts
    assert 1 == server.loads()


@WORKERS
def test_a_hook_and_a_fixture_of_the_suite_lead_to_other_servers(
    suite: UserSuite,
    server: RealServer,
    start_server: StartServer,
    registry: Registry,
    workers: list[str],
) -> None:
    hooked, own = start_server(), start_server()
    for one in (hooked, own):
        bring(one, registry, "completion", "llama3.2:1b")
    test = """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("n", range(3))
        def test_it(ollama_client, ollama_host, ollama_model, n):
            assert "URL" == ollama_host
            assert ollama_client.generate(ollama_model, "Say").response
    """
    suite.write(
        {
            "conftest.py": f"def pytest_ollama_host(config): return {hooked.url!r}\n",
            "test_hooked.py": test.replace("URL", hooked.url),
            "sub/conftest.py": f"""
                import pytest

                @pytest.fixture(scope="session")
                def ollama_host(): return {own.url!r}
            """,
            "sub/test_own.py": test.replace("URL", own.url),
        }
    )
    assert {"passed": 6} == suite.run(*workers).counts
    assert (0, 1, 1) == (server.loads(), hooked.loads(), own.loads())
    # Once by the fixture that started it.
    assert 1 == server.calls("/api/version")


def test_the_command_line_pulls_and_then_loads(server: RealServer, own_registry: Registry) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_ollama_warmup", *arguments, "--host", server.url],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    model = own_registry.name("completion")
    spec = f"{model},insecure=true,num_ctx=2048"
    code, out = command("pull", spec)
    assert (0, []) == (code, server.loaded())
    assert "   pulled 1.7 MB in" in out
    code, out = command("preload", spec, "--keep-alive=-1", "--json")
    (one,) = json.loads(out)["models"]
    assert (0, "ready", 2048) == (code, one["status"], one["context_length"])
    (resident,) = server.get("/api/ps")["models"]
    assert (2048, True) == (resident["context_length"], resident["expires_at"].startswith("23"))
    assert (1, 1) == (server.calls("/api/pull"), server.loads())
    nope = own_registry.name("nope")
    assert 1 == command("preload", f"{nope},insecure=true")[0]


def test_a_script_preloads(server: RealServer, registry: Registry) -> None:
    digest = bring(server, registry, "embed", "embed:a")
    record = preload("embed:a", host=server.url)
    (outcome,) = record.models.values()
    assert (True, digest, ("embedding",)) == (outcome.ready, outcome.digest, outcome.capabilities)
    assert ["embed:a"] == server.loaded()


def test_runs_that_want_one_model_with_different_options_do_not_hang_the_server(
    server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", "llama3.2:1b")
    for _ in range(3):
        commands = [
            [
                sys.executable,
                "-m",
                "pytest_ollama_warmup",
                "preload",
                "-qq",
                "--host",
                server.url,
                f"llama3.2:1b,num_ctx={num_ctx}",
            ]
            for num_ctx in (2048, 2048, 4096)
        ]
        processes = [subprocess.Popen(command) for command in commands]
        try:
            assert [0, 0, 0] == [process.wait(30) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        server.unload("llama3.2:1b")
