"""Tests that freeze their clocks, and what the plugin measures and waits for meanwhile."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import freezegun
import pytest
import time_machine

from pytest_ollama_warmup.errors import WaitedTooLong
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.warmup.locks import held
from tests.conftest import LLAMA, Suite

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

FREEZERS = pytest.mark.parametrize(
    "freeze",
    [
        lambda: freezegun.freeze_time("2001-01-01"),
        lambda: time_machine.travel("2001-01-01", tick=False),
    ],
    ids=["freezegun", "time-machine"],
)


@FREEZERS
def test_our_clock_goes_on(freeze: Callable[[], AbstractContextManager[object]]) -> None:
    before = clock.monotonic(), clock.time()
    with freeze():
        frozen = time.time()
        clock.sleep(0.02)
        assert frozen == time.time()
        assert clock.monotonic() > before[0]
        assert before[1] < clock.time() < before[1] + 60


@FREEZERS
def test_a_wait_for_a_lock_has_its_bound(
    tmp_path: Path, freeze: Callable[[], AbstractContextManager[object]]
) -> None:
    told: list[str] = []
    with (
        held(tmp_path / "x.lock", "m", 60.0),
        freeze(),
        pytest.raises(WaitedTooLong),
        held(tmp_path / "x.lock", "m", 1.0, lambda: told.append("waits")),
    ):
        pytest.fail("the lock was had")
    assert told


FROZEN = """
    import freezegun, pytest, time_machine

    @pytest.fixture(scope="session", autouse=True)
    def frozen():
        with FREEZE:
            yield

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(3))
    def test_it(n, ollama_host):
        if n == 1:
            unload(ollama_host)

    def unload(host):
        import urllib.request
        body = b'{"model": "llama3.2:1b", "keep_alive": 0, "stream": false}'
        urllib.request.urlopen(urllib.request.Request(host + "/api/generate", body)).read()
"""


@pytest.mark.parametrize(
    "freeze",
    ["freezegun.freeze_time('2001-01-01')", "time_machine.travel('2001-01-01', tick=False)"],
    ids=["freezegun", "time-machine"],
)
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_suite_with_a_frozen_clock_is_told_true_times_and_causes(
    suite: Suite, freeze: str, workers: list[str]
) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=0.3))
    suite.write({"test_it.py": FROZEN.replace("FREEZE", freeze)})
    run = suite.run("-v", *workers)
    assert {"passed": 3} == run.counts
    (took,) = re.findall(r"loaded in ([\d.]+) s", run.table[0])
    # By the frozen clock it took no time, or decades.
    assert 0.3 <= float(took) < 60
    assert "keep-alive" not in run.out
    if not workers:
        assert "unloaded" in run.out
        assert 2 == len(suite.ollama.loads)
