"""Still warm before each test, on a real server; each with the same run without the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import UserSuite
from tests.test_faults import end, wait_for
from tests.test_grouping import IN_TURN as IN_TURN_AND_WARM
from tests.test_guard import TOOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import StartServer
    from tests.live.registry import Registry
    from tests.live.server import RealServer

MODELS = {"a": "completion", "b": "completion-b", "c": "completion-c", "d": "completion-d"}


@pytest.fixture
def server(start_server: StartServer, registry: Registry) -> RealServer:
    """A server with four models, of which it keeps three at most; cold."""
    server = start_server(OLLAMA_MAX_LOADED_MODELS="3")
    for name, source in MODELS.items():
        server.pull(registry.name(source))
        server.post("/api/copy", {"source": registry.name(source), "destination": f"{name}:1"})
        server.delete(registry.name(source))
    return server


@pytest.fixture
def loads_of(
    pytester: pytest.Pytester, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run tests cold on the server, all of which pass; return how many loads that took."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    suite = UserSuite(pytester)

    def run(tests: str, *args: str) -> int:
        for name in server.loaded():
            server.unload(name)
        before = server.loads()
        suite.write({"tools.py": TOOLS, "test_it.py": f"from tools import *\n{tests}"})
        assert {"passed"} == set(suite.run(*args).counts)
        return server.loads() - before

    return run


def many(model: str, body: str, number: int = 6) -> str:
    return f"""
@pytest.mark.requires_model("{model}")
@pytest.mark.parametrize("n", range({number}))
def test_it(n):
    {body}
"""


# Without groups they evict each other's models: none is warm for all of its tests.
IN_TURN = IN_TURN_AND_WARM.replace("assert name in loaded_models()", "pass")


def test_more_models_than_fit_cost_no_more_loads_than_without(
    loads_of: Callable[..., int],
) -> None:
    # The first warm-up of each.
    assert loads_of(IN_TURN) <= loads_of(IN_TURN, "--ollama-off") + 4


def test_with_several_workers_loads_are_left_to_the_tests(
    loads_of: Callable[..., int], server: RealServer
) -> None:
    # How many loads two workers make is left to chance: whose request comes while the model is
    # there. That none of them is ours is not: beside the tests' own 24 requests each model's
    # warm-up, and the one that asks for its keep-alive.
    assert loads_of(IN_TURN, "-n2") > 4
    assert server.calls("/api/generate") <= 24 + 2 * 4


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
def test_grouped_each_is_loaded_once(loads_of: Callable[..., int], workers: list[str]) -> None:
    assert 4 == loads_of(IN_TURN_AND_WARM, "--ollama-group-by-model", *workers)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
@pytest.mark.parametrize("more", [[], ["--ollama-group-by-model"]], ids=["", "grouped"])
def test_beside_tests_that_need_none_each_is_loaded_once(
    loads_of: Callable[..., int], workers: list[str], more: list[str]
) -> None:
    tests = """
@pytest.mark.requires_model("a:1", "b:1")
def test_two():
    assert {"a:1", "b:1"} <= set(loaded_models())
    ask("a:1")
    ask("b:1")

@pytest.mark.parametrize("n", range(4))
def test_other(n):
    pass
"""
    assert 2 == loads_of(tests, "--ollama-background", *more, *workers)


def test_an_unmarked_suite_with_four_listed_and_room_for_three_costs_no_more_than_without(
    loads_of: Callable[..., int],
) -> None:
    listed = "--ollama-preload=a:1 b:1 c:1 d:1"
    tests = IN_TURN.replace("marks=pytest.mark.requires_model", "id=str")
    ours = loads_of(tests, listed)
    assert ours <= loads_of(tests, listed, "--ollama-off") + 4


@pytest.mark.parametrize(
    "body",
    [
        'ask("a:1", **({"num_thread": 1} if n < 3 else {}))',
        'ask("a:1", **({"num_batch": 256} if n % 2 else {}))',
        'ask("a:1", **({"num_ctx": 2048} if n == 3 else {}))',
        'ask("a:1", num_ctx=2048)',
    ],
    ids=["num_thread", "num_batch", "one-num_ctx", "num_ctx"],
)
def test_options_of_tests_cost_no_load_more_than_without(
    loads_of: Callable[..., int], body: str
) -> None:
    tests = many("a:1", body)
    assert loads_of(tests) <= loads_of(tests, "--ollama-off") + 1


def test_two_workers_on_one_context_that_was_not_listed(loads_of: Callable[..., int]) -> None:
    tests = many("a:1", 'ask("a:1", num_ctx=2048)', 12)
    assert 2 == loads_of(tests, "-n2")


def test_a_test_that_unloads_leaves_the_next_one_warm(loads_of: Callable[..., int]) -> None:
    body = 'assert "a:1" in loaded_models(); ask("a:1"); n % 2 or unload("a:1")'
    tests = many("a:1", body, 4)
    assert 3 == loads_of(tests)


def test_a_server_that_is_killed_and_restarted_costs_no_test(
    pytester: pytest.Pytester, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    suite = UserSuite(pytester)
    body = """
    import pathlib, time
    if n == 2:
        print("GO", flush=True)
        while not pathlib.Path("went").exists(): time.sleep(0.01)
    else:
        assert "a:1" in loaded_models()
        ask("a:1")
"""
    suite.write({"tools.py": TOOLS, "test_it.py": f"from tools import *\n{many('a:1', body)}"})
    process = suite.start("-s")
    wait_for(process, "GO")
    server.kill()
    server.restart()
    (suite.pytester.path / "went").touch()
    code, out = end(process)
    assert (0, True) == (code, "6 passed" in out), out
    assert "a:1 was gone (unloaded, or the server was restarted), and loaded again" in out
