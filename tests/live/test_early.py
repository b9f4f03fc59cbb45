"""The load that is asked for before conftests are imported, on a real server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.live.test_main_job import CHAT, bring, until
from tests.test_early import MEANWHILE

if TYPE_CHECKING:
    from tests.conftest import UserSuite
    from tests.live.provide import Provided
    from tests.live.registry import Registry
    from tests.live.server import RealServer

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
NAME = "llama3.2:1b"
LIST = f"--ollama-preload={NAME}"
# Nobody else asks for the load before this goes on.
WAITS_FOR_THE_LOAD = """
    import json, os, time, urllib.request

    url = "http://" + os.environ.get("OLLAMA_HOST").removeprefix("http://") + "/api/ps"
    begin = time.monotonic()
    while True:
        try:
            if json.load(urllib.request.urlopen(url))["models"]:
                break
        except OSError:
            pass
        assert time.monotonic() - begin < 60, "nobody has asked for the load"
        time.sleep(0.02)
"""


@WORKERS
def test_the_model_is_loaded_once_while_conftests_are_imported(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", NAME)
    suite.write({"conftest.py": WAITS_FOR_THE_LOAD, "test_chat.py": CHAT.replace("MODEL", NAME)})
    run = suite.run(LIST, "-v", *workers)
    assert ({"passed": 8}, 1) == (run.counts, server.loads())
    assert MEANWHILE.search(run.table[-1])


@WORKERS
def test_the_run_joins_a_load_that_is_under_way(
    suite: UserSuite, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", NAME)
    suite.write({"test_chat.py": CHAT.replace("MODEL", NAME)})
    run = suite.run(LIST, "-v", *workers)
    assert ({"passed": 8}, 1) == (run.counts, server.loads())


def test_a_conftest_that_fails_asks_for_one_load_at_most_and_says_nothing_of_it(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", NAME)
    suite.write({"conftest.py": WAITS_FOR_THE_LOAD + "    raise RuntimeError('mine')\n"})
    run = suite.run(LIST)
    assert (4, 1) == (run.ret, server.loads())
    assert "ollama:" not in run.out + run.err


def test_what_is_in_memory_with_other_options_is_not_reloaded_early(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", NAME)
    options = {"num_ctx": 1024, "num_batch": 64}
    server.post("/api/generate", {"model": NAME, "stream": False, "options": options})
    suite.write({"conftest.py": "raise RuntimeError\n"})
    suite.run(LIST)
    time.sleep(0.5)
    assert [1024] == [one["context_length"] for one in server.get("/api/ps")["models"]]
    assert 1 == server.loads()


def test_ctrl_c_while_conftests_are_imported_ends_the_load_at_the_server(
    suite: UserSuite, server: RealServer, registry: Registry
) -> None:
    bring(server, registry, "completion", NAME)
    # Stopped as soon as the load has begun.
    suite.write(
        {
            "conftest.py": f"""
            import os, signal, time

            log = {str(server.log)!r}
            while "loading model via llama-server" not in open(log).read():
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
            """
        }
    )
    process = suite.start(LIST)
    output = process.communicate(timeout=60)[0]
    assert "KeyboardInterrupt" in output
    assert "ollama:" not in output
    until(lambda: len(server.processes()) == 1 or server.loaded())


@WORKERS
def test_a_server_of_the_runs_own_starts_then_too(
    suite: UserSuite, parts: Provided, server: RealServer, registry: Registry, workers: list[str]
) -> None:
    bring(server, registry, "completion", NAME)
    suite.write({"conftest.py": WAITS_FOR_THE_LOAD, "test_chat.py": CHAT.replace("MODEL", NAME)})
    command = f"--ollama-serve-command='{parts.ollama}' serve"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(server.models))
        run = suite.run("--ollama-serve", command, LIST, "-v", *workers)
    assert {"passed": 8} == run.counts
    assert MEANWHILE.search(run.table[-1])
