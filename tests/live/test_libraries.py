"""The examples for libraries, each with the real library and a real server: one load."""

from __future__ import annotations

import importlib.util
import os
import shutil
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Result, UserSuite
from tests.live.provide import Missing, provide
from tests.live.registry import Registry
from tests.live.server import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.live.provide import Provided

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "libraries"
MODEL, EMBEDDER = "gemma3:270m", "all-minilm:latest"
# Importing LiteLLM alone takes half a minute on a busy machine.
LIMIT_S = 400
unhurried = pytest.mark.timeout(2 * LIMIT_S + 60, func_only=True)

# Short answers that are the same each time. One thread: two that share busy cores with other
# processes wait for each other most of the time. The weights have no end of an answer of their own.
PARAMETERS = {"num_thread": 1, "num_predict": 128, "temperature": 0, "stop": ["<|im_start|>"]}

# Refuse and report what leaves the machine.
OFFLINE = """
    import pathlib, socket

    AT_HOME = {"127.0.0.1", "::1", "localhost"}
    SEEN = pathlib.Path(__file__).with_name("left.txt")

    def guarded(real, host_of):
        def call(*args, **kwargs):
            host = host_of(args)
            if host is not None and host not in AT_HOME:
                with SEEN.open("a") as file:
                    file.write(f"{host}\\n")
                raise OSError(f"offline: {host}")
            return real(*args, **kwargs)
        return call

    def of_address(args):
        return args[1][0] if isinstance(args[1], tuple) else None

    socket.getaddrinfo = guarded(socket.getaddrinfo, lambda args: args[0])
    socket.socket.connect = guarded(socket.socket.connect, of_address)
    socket.socket.connect_ex = guarded(socket.socket.connect_ex, of_address)
"""

# Without an address: the library finds it in its variable.
FROM_ENVIRONMENT = """
    import pytest

    @pytest.mark.requires_model("gemma3:270m")
    def test_address_in_a_variable(ollama_model):
        name = ollama_model
"""


@dataclass(frozen=True, kw_only=True)
class Library:
    """An example, and what of it is to be seen."""

    folder: str
    module: str
    passed: int
    models: tuple[str, ...] = (MODEL,)
    context_length: int = 4096
    passes_num_ctx: bool = True
    export: str = ""
    without_address: str = ""

    def __str__(self) -> str:
        return self.folder


LIBRARIES = [
    Library(
        folder="ollama",
        module="ollama",
        passed=3,
        without_address="""
            import ollama
            assert ollama.Client().generate(name, "Hi").response
        """,
    ),
    Library(
        folder="openai",
        module="openai",
        passed=3,
        passes_num_ctx=False,
        export="OPENAI_BASE_URL={openai_base_url}",
        without_address="""
            from openai import OpenAI
            chat = OpenAI(api_key="ollama").chat.completions
            hi = [{"role": "user", "content": "Hi"}]
            assert chat.create(model=name, messages=hi, temperature=0).choices[0].message.content
        """,
    ),
    Library(
        folder="langchain",
        module="langchain_ollama",
        passed=3,
        models=(MODEL, EMBEDDER),
        without_address="""
            from langchain_ollama import ChatOllama
            assert ChatOllama(model=name).invoke("Hi").content
        """,
    ),
    Library(
        folder="llama_index",
        module="llama_index",
        passed=3,
        models=(MODEL, EMBEDDER),
        context_length=8192,
    ),
    Library(
        folder="pydantic_ai",
        module="pydantic_ai",
        passed=2,
        passes_num_ctx=False,
        export="OLLAMA_BASE_URL={openai_base_url}",
        without_address="""
            from pydantic_ai import Agent
            agent = Agent(f"ollama:{name}", model_settings={"temperature": 0})
            assert agent.run_sync("Hi").output
        """,
    ),
    Library(
        folder="litellm",
        module="litellm",
        passed=2,
        export="OLLAMA_API_BASE",
        without_address="""
            import litellm
            hi = [{"role": "user", "content": "Hi"}]
            reply = litellm.completion(f"ollama_chat/{name}", messages=hi)
            assert reply.choices[0].message.content
        """,
    ),
    Library(
        folder="dspy",
        module="dspy",
        passed=2,
        export="OLLAMA_API_BASE",
        without_address="""
            import dspy
            assert dspy.LM(f"ollama_chat/{name}", engine="litellm", cache=False)("Hi")
        """,
    ),
    Library(folder="haystack", module="haystack_integrations", passed=2),
    Library(
        folder="deepeval",
        module="deepeval",
        passed=1,
        export="LOCAL_MODEL_BASE_URL",
        without_address="""
            from deepeval.models import OllamaModel
            assert OllamaModel(model=name).generate("Hi")[0]
        """,
    ),
]
BY_NAME = {library.folder: library for library in LIBRARIES}


def some(libraries: Iterable[Library]) -> pytest.MarkDecorator:
    """Run a test for each of *libraries*."""
    return pytest.mark.parametrize("library", list(libraries), ids=str)


@pytest.fixture(scope="module")
def server(parts: Provided) -> Iterator[RealServer]:
    """A server with Gemma and an embedding model, under the names that the examples use."""
    try:
        gemma = provide(gemma=True).gemma
    except Missing as exc:
        pytest.skip(str(exc))
    assert gemma is not None
    with Registry(parts.models) as registry, RealServer(parts.ollama) as server:
        registry.add("gemma", gemma)
        for model in ("gemma", "embed"):
            server.pull(registry.name(model), limit_s=LIMIT_S)
        make(server, MODEL, registry.name("gemma"), PARAMETERS)
        make(server, EMBEDDER, registry.name("embed"), {})
        yield server


@dataclass
class Example:
    """The example of a library, ready to run, and the server that it uses."""

    suite: UserSuite
    server: RealServer

    @property
    def folder(self) -> Path:
        """Where the example is."""
        return self.suite.pytester.path

    def replace(self, file: str, old: str, new: str) -> None:
        """Replace *old* in a file of the example."""
        text = (self.folder / file).read_text("utf-8")
        assert old in text
        (self.folder / file).write_text(text.replace(old, new), "utf-8")

    def left(self) -> list[str]:
        """Return the hosts that were asked for outside of this machine."""
        file = self.folder / "left.txt"
        return file.read_text("utf-8").split() if file.exists() else []

    def loaded(self) -> dict[str, dict[str, Any]]:
        """Return what the server says of each model in memory, by name."""
        return {model["name"]: model for model in self.server.get("/api/ps")["models"]}

    def run(self, *args: str) -> Result:
        """Run the example with no model in memory."""
        for name in self.server.loaded():
            self.server.unload(name)
        # Not ``run``: that one gives up after 100 seconds.
        process = self.suite.start("-p", "offline", *args, fresh=True)
        try:
            out, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        print(out)
        return Result(process.wait(), out, "")


@pytest.fixture
def example(
    suite: UserSuite, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Library], Example]:
    """Copy the example of a library, and skip the test where the library is not installed."""
    monkeypatch.setenv("HOME", str(suite.pytester.path))
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "LITELLM_", "DEEPEVAL_", "DSPY_", "HAYSTACK_")):
            monkeypatch.delenv(name)

    def copy(library: Library) -> Example:
        if importlib.util.find_spec(library.module) is None:
            pytest.skip(f"{library.module} is not installed: run tox -e libraries")
        shutil.copytree(EXAMPLES / library.folder, suite.pytester.path, dirs_exist_ok=True)
        suite.write({"offline.py": OFFLINE})
        return Example(suite, server)

    return copy


@unhurried
@some(LIBRARIES)
def test_each_model_of_an_example_is_loaded_once(
    example: Callable[[Library], Example], library: Library
) -> None:
    it = example(library)
    more = int(bool(library.without_address))
    if more:
        body = textwrap.indent(textwrap.dedent(library.without_address), "    ")
        it.suite.write({"test_variable.py": textwrap.dedent(FROM_ENVIRONMENT) + body})
    before = it.server.loads()
    run = it.run(*([f"--ollama-export={library.export}"] if library.export else []))
    assert {"passed": library.passed + more} == run.counts
    assert [] == it.left()
    assert len(library.models) == it.server.loads() - before
    loaded = it.loaded()
    assert set(library.models) == set(loaded)
    assert library.context_length == loaded[MODEL]["context_length"]
    for model in loaded.values():
        # No library shortens the keep-alive of the plugin.
        assert datetime.fromisoformat(model["expires_at"]) > later(minutes=6)


@unhurried
@some(one for one in LIBRARIES if one.passes_num_ctx and one.context_length == 4096)
def test_a_library_that_passes_num_ctx_meets_the_model_that_is_loaded_with_it(
    example: Callable[[Library], Example], library: Library
) -> None:
    it = example(library)
    before = it.server.loads()
    run = it.run(f"--ollama-preload={MODEL},num_ctx=8192", "-k", "not embeddings")
    assert {"passed"} == set(run.counts)
    assert 1 == it.server.loads() - before
    assert 8192 == it.loaded()[MODEL]["context_length"]


@unhurried
@some(one for one in LIBRARIES if not one.passes_num_ctx)
def test_a_library_that_cannot_pass_num_ctx_reloads_a_model_that_is_listed_with_it(
    example: Callable[[Library], Example], library: Library
) -> None:
    it = example(library)
    before = it.server.loads()
    run = it.run(f"--ollama-preload={MODEL},num_ctx=8192")
    assert {"passed": library.passed} == run.counts
    assert 2 == it.server.loads() - before
    assert 4096 == it.loaded()[MODEL]["context_length"]


@unhurried
def test_a_model_that_is_made_with_num_ctx_gives_it_to_openai_clients(
    example: Callable[[Library], Example],
) -> None:
    it = example(BY_NAME["openai"])
    make(it.server, "gemma3-8k", MODEL, {"num_ctx": 8192})
    it.replace("test_chat.py", MODEL, "gemma3-8k")
    before = it.server.loads()
    assert {"passed": 3} == it.run().counts
    assert 1 == it.server.loads() - before
    assert 8192 == it.loaded()["gemma3-8k:latest"]["context_length"]


@unhurried
def test_the_default_context_length_of_the_server_is_that_of_openai_clients(
    example: Callable[[Library], Example],
    parts: Provided,
    server: RealServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = example(BY_NAME["openai"])
    env = {"OLLAMA_CONTEXT_LENGTH": "8192"}
    with RealServer(parts.ollama, models=server.models, env=env) as longer:
        monkeypatch.setenv("OLLAMA_HOST", longer.url)
        it.server = longer
        # As --ollama-serve does it: the variable, and the same value for the model.
        assert {"passed": 3} == it.run(f"--ollama-preload={MODEL},num_ctx=8192").counts
        assert 1 == longer.loads()
        assert 8192 == it.loaded()[MODEL]["context_length"]


@unhurried
def test_llama_index_without_a_context_window_reloads_the_model_in_the_first_run(
    example: Callable[[Library], Example],
) -> None:
    it = example(BY_NAME["llama_index"])
    it.replace("conftest.py", 'context_window=ollama_options["num_ctx"],', "")
    it.replace("test_chat.py", f"{MODEL},num_ctx=8192", MODEL)
    for loads in (2, 1):
        before = it.server.loads()
        assert {"passed": 2} == it.run("-k", "not embeddings").counts
        assert loads == it.server.loads() - before
        assert 32768 == it.loaded()[MODEL]["context_length"]


def make(server: RealServer, name: str, base: str, parameters: dict[str, Any]) -> None:
    """Make a model of the weights of *base*, as ``ollama create`` does of a Modelfile."""
    body = {"model": name, "from": base, "parameters": parameters, "stream": False}
    server.post("/api/create", body)


def later(*, minutes: float) -> datetime:
    """Return the time in *minutes* from now."""
    return datetime.now(UTC) + timedelta(minutes=minutes)
