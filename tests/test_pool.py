"""Several servers: workers of pytest-xdist are spread over them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.ollama.emulator import Emulator
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THERE = replace(LLAMA, present=True)
LIST = "--ollama-preload=llama3.2:1b"
STEPS = pytest.mark.parametrize("args", [[], [LIST]], ids=["marked", "listed"])

# Each test waits until all have begun: each worker runs one.
SPREAD = """
    import os, pathlib, time, pytest

    HERE = pathlib.Path(__file__).parent
    AT_IMPORT = os.environ.get("OLLAMA_HOST")

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(COUNT))
    def test_where(ollama_host, ollama_openai_url, worker_id, n):
        assert ollama_host == os.environ["OLLAMA_HOST"]
        assert f"{ollama_host}/v1" == ollama_openai_url
        (HERE / f"at-{worker_id}").write_text(f"{ollama_host} {AT_IMPORT}")
        deadline = time.monotonic() + 30
        while len(list(HERE.glob("at-*"))) < COUNT:
            assert time.monotonic() < deadline
            time.sleep(0.02)
"""


@pytest.fixture
def start() -> Iterator[Callable[[], Emulator]]:
    """Start a server that has the model."""
    with ExitStack() as servers:
        yield lambda: servers.enter_context(Emulator([THERE]))


@pytest.fixture
def three(start: Callable[[], Emulator]) -> list[Emulator]:
    """Three servers."""
    return [start() for _ in range(3)]


def spread(suite: Suite, workers: int) -> None:
    suite.write({"test_where.py": SPREAD.replace("COUNT", str(workers))})


def hosts(*emulators: Emulator) -> str:
    return f"--ollama-host={','.join(one.url for one in emulators)}"


def used(suite: Suite) -> dict[str, str]:
    """Which worker used which server; at import it was the same."""
    found = {}
    for path in suite.pytester.path.glob("at-*"):
        used, at_import = path.read_text().split()
        found[path.name.removeprefix("at-")] = used
        assert used == at_import
    return found


@STEPS
@pytest.mark.parametrize("workers", [3, 4])
def test_worker_i_uses_host_i_mod_n_also_when_its_modules_are_imported(
    suite: Suite, three: list[Emulator], args: list[str], workers: int
) -> None:
    spread(suite, workers)
    run = suite.run(f"-n{workers}", hosts(*three), *args)
    assert {"passed": workers} == run.counts
    assert {f"gw{n}": three[n % 3].url for n in range(workers)} == used(suite)
    assert [1, 1, 1] == [len(one.loads) for one in three]
    assert [] == suite.ollama.requests
    print(run.out)
