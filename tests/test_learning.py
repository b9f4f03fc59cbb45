"""What one run learns for the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, Suite

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
THERE = replace(LLAMA, present=True)
OWN_CONTEXT = """
    import json, os, urllib.request
    import pytest

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(6))
    def test_it(ollama_options, n):
        assert {} == ollama_options
        body = {"model": "llama3.2:1b", "prompt": "Hi", "options": {"num_ctx": 8192}}
        request = urllib.request.Request(
            os.environ["OLLAMA_HOST"] + "/api/generate", json.dumps(body).encode()
        )
        urllib.request.urlopen(request, timeout=60).read()
"""
LEARNED = "num_ctx 8192, learned"


@pytest.fixture
def learning(suite: Suite) -> Suite:
    """A suite whose tests send a context of their own."""
    suite.ollama.add(THERE)
    suite.write({"test_it.py": OWN_CONTEXT})
    return suite


def contexts(suite: Suite) -> list[object]:
    """The contexts of all loads since the last call; the server is cold after it."""
    found: list[object] = [load.options["num_ctx"] for load in suite.ollama.loads]
    suite.ollama.forget()
    suite.ollama.unload("llama3.2:1b")
    return found


@WORKERS
@pytest.mark.parametrize("args", [[], ["--ollama-preload=llama3.2:1b"]], ids=["marked", "listed"])
def test_the_next_run_warms_with_the_context_that_the_tests_used(
    learning: Suite, workers: list[str], args: list[str]
) -> None:
    first = learning.run(*args, "-v", *workers)
    assert ({"passed": 6}, [4096, 8192]) == (first.counts, contexts(learning))
    assert LEARNED not in first.out
    second = learning.run(*args, "-v", *workers)
    assert ({"passed": 6}, [8192]) == (second.counts, contexts(learning))
    assert LEARNED in second.table[0]
    assert "llama3.2:1b loaded in" in second.out
    third = learning.run(*args, "-v", *workers)
    assert ([8192], True) == (contexts(learning), LEARNED in third.out)


def test_a_context_of_the_spec_goes_before(learning: Suite) -> None:
    learning.run()
    contexts(learning)
    learning.write({"test_it.py": OWN_CONTEXT.replace("{} ==", "{'num_ctx': 2048} ==")})
    learning.run("--ollama-preload=llama3.2:1b,num_ctx=2048")
    assert [2048, 8192] == contexts(learning)


@pytest.mark.parametrize("forget", ["--cache-clear", "-pno:cacheprovider"])
def test_it_can_be_forgotten_or_done_without(learning: Suite, forget: str) -> None:
    learning.run()
    contexts(learning)
    run = learning.run(forget)
    assert ({"passed": 6}, [4096, 8192]) == (run.counts, contexts(learning))
    assert (forget == "--cache-clear") == ("The next run here loads it so." in run.out)


def test_another_server_is_another_matter(learning: Suite) -> None:
    learning.run()
    contexts(learning)
    url = learning.ollama.url.replace("127.0.0.1", "localhost")
    learning.run(f"--ollama-host={url}")
    assert [4096, 8192] == contexts(learning)


def test_what_tests_no_longer_use_is_unlearned(learning: Suite) -> None:
    learning.run()
    contexts(learning)
    learning.write({"test_it.py": OWN_CONTEXT.replace("8192", "4096")})
    learning.run()
    assert [8192, 4096] == contexts(learning)
    learning.run()
    assert [4096] == contexts(learning)


def test_what_is_gone_comes_back_with_what_was_learned(learning: Suite) -> None:
    learning.run()
    contexts(learning)
    unloads = OWN_CONTEXT.replace(
        '"prompt": "Hi", "options": {"num_ctx": 8192}', '"keep_alive": 0'
    ).replace("range(6)", "range(2)")
    learning.write({"test_it.py": unloads})
    learning.run()
    assert [8192, 8192] == contexts(learning)


@WORKERS
def test_a_model_that_is_another_one_than_last_time_is_told_so(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(replace(THERE, digest="ab" * 32))
    suite.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    args = ["--ollama-preload=llama3.2:1b", *workers]
    assert "changed since" not in suite.run(*args).out
    assert "changed since" not in suite.run(*args).out
    suite.ollama.add(replace(THERE, digest="cd" * 32))
    said = "llama3.2:1b changed since the last run: abababababab → cdcdcdcdcdcd"
    assert said in suite.run(*args).ours
    assert said not in suite.run(*args).ours


def test_a_cache_that_somebody_has_edited_does_no_harm(learning: Suite) -> None:
    learning.run()
    contexts(learning)
    folder: Path = learning.pytester.path / ".pytest_cache" / "v" / "ollama-warmup"
    for path in folder.iterdir():
        path.write_text('["nonsense"]')
    assert ({"passed": 6}, [4096, 8192]) == (learning.run().counts, contexts(learning))
    (folder / "contexts").write_text(f'{{"{learning.ollama.url} llama3.2:1b": "many"}}')
    assert {"passed": 6} == learning.run().counts


# What fits

ROTATION = """
    import json, os, urllib.request
    import pytest

    @pytest.mark.parametrize("name", ["a:1", "b:1", "c:1"])
    def test_it(name):
        body = {"model": name, "prompt": "Hi", "stream": False}
        request = urllib.request.Request(
            os.environ["OLLAMA_HOST"] + "/api/generate", json.dumps(body).encode()
        )
        urllib.request.urlopen(request, timeout=60).read()
"""


@WORKERS
def test_what_did_not_fit_is_left_out_until_it_is_seen_to_fit(
    suite: Suite, workers: list[str]
) -> None:
    for name in "abc":
        suite.ollama.add(ScriptedModel(f"{name}:1", present=True, digest=name * 64, load_s=0.3))
    suite.ollama.scheduler._max_loaded = 2
    suite.write({"test_it.py": ROTATION})
    left_out = "c:1 is not loaded yet: it did not fit together with a:1 and b:1 in the last run [not-loaded-yet]"

    def run() -> tuple[bool, str]:
        for name in "abc":
            suite.ollama.unload(f"{name}:1")
        suite.ollama.forget()
        done = suite.run("--ollama-preload=a:1 b:1 c:1", "-p", "no:randomly", *workers)
        assert {"passed": 3} == done.counts
        return left_out in done.ours, done.out

    first, out = run()
    assert not first
    assert "a:1 had to make room for c:1" in out
    assert run()[0]
    assert 3 == len(suite.ollama.loads)
    # It has more room from now on, which this run sees and the next one uses.
    suite.ollama.scheduler._max_loaded = 3
    assert run()[0]
    last, out = run()
    assert not last
    assert "had to make room" not in out
    assert 3 == len(suite.ollama.loads)
