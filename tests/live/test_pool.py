"""Several real servers, with the workers of pytest-xdist spread over them."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import UserSuite
from tests.live.server import RealServer
from tests.test_pool import SPREAD, hosts, used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.live.conftest import StartServer
    from tests.live.provide import Provided
    from tests.live.registry import Registry

STEPS = pytest.mark.parametrize("listed", [False, True], ids=["marked", "listed"])
# Spread over all workers as in the tests with emulators, and each asks its server.
ASKS = f"""{SPREAD}
        import ollama

        assert ollama.Client().generate(MODEL, "It is", options={{"num_predict": 4}}).response
"""


@pytest.fixture
def three(start_server: StartServer) -> list[RealServer]:
    """Three servers without models."""
    return [start_server() for _ in range(3)]


@pytest.fixture
def suite(pytester: pytest.Pytester, registry: Registry) -> UserSuite:
    """A suite of three tests that run at the same time."""
    suite = UserSuite(pytester)
    name = registry.name("completion")
    text = ASKS.replace("COUNT", "3").replace("MODEL", repr(name))
    suite.write({"test_where.py": text.replace('"llama3.2:1b"', repr(f"{name},insecure=true"))})
    return suite


def listing(registry: Registry, listed: bool) -> list[str]:
    name = f"{registry.name('completion')},insecure=true"
    return [f"--ollama-preload={name}"] if listed else ["--ollama-pull=missing"]


@STEPS
def test_each_of_three_servers_pulls_and_loads_once(
    suite: UserSuite, three: list[RealServer], registry: Registry, listed: bool
) -> None:
    run = suite.run("-n3", hosts(*three), *listing(registry, listed))
    assert {"passed": 3} == run.counts
    assert {f"gw{n}": three[n].url for n in range(3)} == used(suite)
    assert [(1, 1)] * 3 == [(one.calls("/api/pull"), one.loads()) for one in three]
    assert all(f"at {one.url}" in row for one, row in zip(three, run.table, strict=False))


@STEPS
def test_the_workers_of_one_that_is_down_move(
    suite: UserSuite, three: list[RealServer], registry: Registry, listed: bool
) -> None:
    three[1].stop()
    # Not known yet when their modules are imported, unless models are listed.
    text = (suite.pytester.path / "test_where.py").read_text("utf-8")
    suite.write({"test_where.py": text.replace("http://{AT_IMPORT}", "{ollama_host}")})
    run = suite.run(
        "-n3",
        hosts(*three),
        "--ollama-wait=1",
        "--ollama-on-unavailable=skip",
        *listing(registry, listed),
    )
    assert {"passed": 3} == run.counts
    assert {"gw0": three[0].url, "gw1": three[2].url, "gw2": three[2].url} == used(suite)
    assert f"gw1 uses {three[2].url}." in run.out


# Machines, as far as one machine has them


class Elsewhere(RealServer):
    """A server in a network namespace of its own, which shares the models of another one."""

    def __init__(self, program: Path, models: Path, address: str) -> None:
        super().__init__(program, models, {"OLLAMA_HOST": f"{address}:11434"})
        self._address, self.port = address, 11434

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self.port}"


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def elsewhere(tmp_path: Path, parts: Provided) -> Iterator[Callable[[int, Path], RealServer]]:
    """Start a server behind an interface of its own; skips where this is not to be had."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root, and the command ip")
    with ExitStack() as undo:

        def start(number: int, models: Path) -> RealServer:
            name = f"ow{os.getpid() % 100000}n{number}"
            here, there = (f"10.213.{number}.{last}" for last in (1, 2))
            try:
                ip(f"netns add {name}")
                undo.callback(ip, f"netns del {name}")
                ip(f"link add {name}a type veth peer name {name}b netns {name}")
                undo.callback(ip, f"link del {name}a")
                ip(f"addr add {here}/24 dev {name}a")
                ip(f"link set {name}a up")
                for words in (
                    f"addr add {there}/24 dev {name}b",
                    f"link set {name}b up",
                    "link set lo up",
                ):
                    ip(f"-n {name} {words}")
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"no network namespaces here: {exc.stderr.decode().strip()}")
            program = tmp_path / f"ollama-{number}"
            program.write_text(f'#!/bin/sh\nexec ip netns exec {name} "{parts.ollama}" "$@"\n')
            program.chmod(0o755)
            return undo.enter_context(Elsewhere(program, models, there))

        yield start


def test_servers_on_other_networks_that_share_their_models(
    suite: UserSuite,
    registry: Registry,
    start_server: StartServer,
    elsewhere: Callable[[int, Path], RealServer],
) -> None:
    here = start_server()
    here.pull(registry.name("completion"))
    there = [elsewhere(number, here.models) for number in (1, 2)]
    run = suite.run("-n3", hosts(here, *there), "--ollama-pull=never")
    assert {"passed": 3} == run.counts
    assert {"gw0": here.url, "gw1": there[0].url, "gw2": there[1].url} == used(suite)
    assert [1, 1, 1] == [one.loads() for one in (here, *there)]
