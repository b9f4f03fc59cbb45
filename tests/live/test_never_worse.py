"""With the plugin a suite has the outcomes that it has without, and no more loads.

Each suite is a list of steps, one a test. A step waits for the one before it, also where that runs
in another worker, so that the number of loads does not depend on chance: without the plugin it is
the same each time.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Result, UserSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.live.conftest import StartServer
    from tests.live.registry import Registry
    from tests.live.server import RealServer

SOURCES = {
    "a:1": "completion",
    "b:1": "completion-b",
    "c:1": "completion-c",
    "d:1": "completion-d",
    "e:1": "embed",
}
# The weights of a:1, with a context of its own in the Modelfile.
VARIANT, OTHER_VARIANT = "a:small", "a:large"

TOOLS = """
    import json, os, pathlib, time, urllib.request

    BASE = "http://" + os.environ["OLLAMA_HOST"].removeprefix("http://")

    def post(path, **body):
        data = json.dumps({"stream": False, **body}).encode()
        request = urllib.request.Request(BASE + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ask(model, keep_alive=None, **options):
        more = {} if keep_alive is None else {"keep_alive": keep_alive}
        options = {"num_predict": 2, **options}
        return post("/api/generate", model=model, prompt="Hi", options=options, **more)

    def chat(model):
        messages = [{"role": "user", "content": "Hi"}]
        return post("/v1/chat/completions", model=model, messages=messages, max_tokens=2)

    def embed(model):
        return post("/api/embed", model=model, input="Hi")

    def unload(model):
        post("/api/generate", model=model, keep_alive=0)

    def until(name):
        end = time.monotonic() + 60
        while not pathlib.Path(name).exists():
            assert time.monotonic() < end, name
            time.sleep(0.01)

    def somebody(does):
        # Outside of this run: whoever starts it does that, and says when it is done.
        pathlib.Path("please-" + does).touch()
        until("done-" + does)
"""


@dataclass(frozen=True)
class Steps:
    """What the tests of a suite do, and which models each needs.

    *lost* is how many loads the first run may lose, in which nobody knows yet what tests use.
    *chance* is how many loads it takes at most where chance decides: the server unloads a moment
    after its answer, and whoever asks before that still finds the model. Until then it is in use,
    too: where room is made in that moment, another one goes.
    """

    steps: tuple[tuple[str, str], ...]
    lost: int = 0
    chance: int = 0

    @property
    def models(self) -> list[str]:
        """The models in the order in which they are needed."""
        return list(dict.fromkeys(name for names, _ in self.steps for name in names.split()))

    def source(self, *, marked: bool) -> str:
        """Return the test module."""
        tests = ["from tools import *", "import pytest"]
        for index, (names, body) in enumerate(self.steps):
            specs = ", ".join(f'"{name}"' for name in names.split())
            turn = f'until("step-{index - 1}")' if index else "pass"
            tests += [
                f"@pytest.mark.requires_model({specs})" if marked else "",
                f"def test_{index}():",
                f"    {turn}",
                f"    try: {body}",
                f'    finally: pathlib.Path("step-{index}").touch()',
            ]
        return "\n".join(tests)


def each(names: str, *bodies: str) -> tuple[tuple[str, str], ...]:
    return tuple((names, body) for body in bodies)


SUITES = {
    "own num_ctx": Steps(each("a:1", *['ask("a:1", num_ctx=2048)'] * 4), lost=1),
    "changing num_ctx": Steps(
        each("a:1", *['ask("a:1", num_ctx=512)'] * 2, *['ask("a:1", num_ctx=2048)'] * 2), lost=1
    ),
    "two contexts in turn": Steps(
        each("a:1", *['ask("a:1", num_ctx=2048)', 'ask("a:1")'] * 2), lost=1
    ),
    "more models than fit, in turn": Steps(
        tuple((f"{name}:1", f'ask("{name}:1")') for name in "abcdabcd"), lost=4, chance=6
    ),
    "more models than fit, one after the other": Steps(
        tuple((f"{name}:1", f'ask("{name}:1")') for name in "aabbccdd"), lost=4
    ),
    "a test that unloads": Steps(
        each("a:1", 'ask("a:1")', 'ask("a:1"); unload("a:1")', 'ask("a:1")', 'ask("a:1")'),
        chance=2,
    ),
    "a server that is killed and restarted": Steps(
        each("a:1", 'ask("a:1")', 'somebody("restart")', 'ask("a:1")', 'ask("a:1")')
    ),
    "another user": Steps(
        each(
            "a:1", 'ask("a:1")', 'somebody("reload"); ask("a:1")', 'somebody("other")', 'ask("a:1")'
        )
    ),
    "shared weights": Steps(
        (
            ("a:1", 'ask("a:1")'),
            (VARIANT, f'ask("{VARIANT}")'),
            ("a:1", 'ask("a:1")'),
            (VARIANT, f'ask("{VARIANT}")'),
        )
    ),
    "shared weights, one after the other": Steps(
        (
            *each("a:1", *['ask("a:1")'] * 2),
            *each(VARIANT, *[f'ask("{VARIANT}")'] * 2),
            *each("a:1", *['ask("a:1")'] * 2),
        )
    ),
    "three variants": Steps(
        tuple((name, f'ask("{name}")') for name in ("a:1", VARIANT, OTHER_VARIANT) * 2)
    ),
    "a variant that is not listed": Steps(
        each("a:1", *['ask("a:1")', f'ask("{VARIANT}")', f'ask("{VARIANT}")', 'ask("a:1")'] * 2)
    ),
    "keep_alive 0": Steps(each("a:1", *['ask("a:1", keep_alive=0)'] * 4), chance=4),
    "embeddings beside chat": Steps(
        (("a:1 e:1", 'embed("e:1"); ask("a:1")'), ("e:1", 'embed("e:1")'), ("a:1", 'ask("a:1")'))
    ),
    "/v1 clients": Steps(each("a:1", *['chat("a:1")'] * 4)),
}


@pytest.fixture
def server(start_server: StartServer, registry: Registry) -> RealServer:
    """A server with all models, of which it keeps three at most."""
    server = start_server(OLLAMA_MAX_LOADED_MODELS="3")
    for name, source in SOURCES.items():
        server.pull(registry.name(source))
        server.post("/api/copy", {"source": registry.name(source), "destination": name})
        server.delete(registry.name(source))
    for name, num_ctx in ((VARIANT, 1024), (OTHER_VARIANT, 2048)):
        made = {"model": name, "from": "a:1", "parameters": {"num_ctx": num_ctx}, "stream": False}
        server.post("/api/create", made)
    return server


@contextmanager
def somebody_else(server: RealServer, folder: Path) -> Iterator[None]:
    """Do what a suite asks somebody else to do."""
    over = threading.Event()
    ask = {"prompt": "Hi", "stream": False}

    def restart() -> None:
        server.kill()
        server.restart()

    does: dict[str, Callable[[], object]] = {
        "restart": restart,
        "reload": lambda: server.post(
            "/api/generate", {"model": "a:1", "options": {"num_ctx": 1024}, **ask}
        ),
        "other": lambda: server.post("/api/generate", {"model": "d:1", **ask}),
    }

    def listen() -> None:
        while not over.wait(0.01):
            for name, do in does.items():
                if (please := folder / f"please-{name}").exists():
                    please.unlink()
                    do()
                    (folder / f"done-{name}").touch()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class Runner:
    """Runs the steps of a suite on a cold server."""

    suite: UserSuite
    server: RealServer

    def run(self, steps: Steps, *args: str, marked: bool) -> tuple[Result, int]:
        """Return how the run ended, and how many loads it took."""
        folder = self.suite.pytester.path
        for path in [*folder.glob("step-*"), *folder.glob("done-*")]:
            path.unlink()
        for name in self.server.loaded():
            self.server.unload(name)
        self.suite.write({"tools.py": TOOLS, "test_it.py": steps.source(marked=marked)})
        before = self.server.loads()
        with somebody_else(self.server, folder):
            result = self.suite.run("-p", "no:randomly", *args)
        # What nobody has waited for may still be written to the log.
        time.sleep(0.05)
        return result, self.server.loads() - before


@pytest.fixture
def runner(
    pytester: pytest.Pytester, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    """A suite whose OLLAMA_HOST is the server, as Ollama documents it."""
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
    return Runner(UserSuite(pytester), server)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])
@pytest.mark.parametrize("kind", ["listed", "marked"])
@pytest.mark.parametrize("name", SUITES)
def test_outcomes_are_the_same_and_loads_no_more(
    runner: Runner, name: str, kind: str, workers: list[str]
) -> None:
    steps, marked = SUITES[name], kind == "marked"
    listed = [] if marked else ["--ollama-preload", " ".join(steps.models)]
    without, loads = runner.run(steps, "--ollama-off", *workers, marked=marked)
    first, first_loads = runner.run(steps, *listed, *workers, marked=marked)
    learned, learned_loads = runner.run(steps, *listed, *workers, marked=marked)
    print(f"{name} | {kind} | {workers or '-n0'} | {loads} | {first_loads} | {learned_loads}")
    assert (without.ret, without.counts) == (first.ret, first.counts)
    assert (without.ret, without.counts) == (learned.ret, learned.counts)
    loads = max(loads, steps.chance)
    assert first_loads <= loads + steps.lost
    assert learned_loads <= loads


# The cases in which version 0.1.0 loaded what another worker's test was reloading. Which worker
# does what is decided by its name, so that each is the first one in turn.
TURNS = """
    import os, pathlib, time
    import pytest
    from tools import *

    FIRST = os.environ["PYTEST_XDIST_WORKER"] == "WHO"

    {mark}
    # Two for each worker: that is how pytest-xdist begins.
    @pytest.mark.parametrize("n", range(4))
    def test_reload(n):
        if FIRST:
            ask("a:1", num_ctx=2048)
            pathlib.Path("asked").touch()
        else:
            until("asked")

    @pytest.mark.parametrize("n", range(6))
    def test_without_model(n): time.sleep(0.1)

    {mark}
    @pytest.mark.parametrize("n", range(2))
    def test_again(n):
        until("asked")
        ask("a:1", num_ctx=2048)

    {mark}
    @pytest.mark.parametrize("n", range(2))
    def test_side_by_side(n): ask("a:1", num_ctx=2048)
"""


@pytest.mark.parametrize("first", ["gw0", "gw1"])
@pytest.mark.parametrize("kind", ["listed", "marked"])
def test_a_reload_by_one_worker_is_not_fought_by_the_other(
    runner: Runner, kind: str, first: str
) -> None:
    mark = '@pytest.mark.requires_model("a:1")' if kind == "marked" else ""
    suite, server = runner.suite, runner.server
    tests = TURNS.format(mark=mark).replace("WHO", first)
    suite.write({"tools.py": TOOLS, "test_it.py": tests})
    listed = [] if kind == "marked" else ["--ollama-preload=a:1"]

    def loads(*args: str) -> int:
        (suite.pytester.path / "asked").unlink(missing_ok=True)
        for name in server.loaded():
            server.unload(name)
        before = server.loads()
        assert {"passed": 14} == suite.run("-p", "no:randomly", "-n2", *args).counts
        time.sleep(0.05)
        return server.loads() - before

    assert (1, 2, 1) == (loads("--ollama-off"), loads(*listed), loads(*listed))
