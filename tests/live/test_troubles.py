"""Pulls in trouble, on a real server: its registry stalls, breaks off, lies or goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import UserSuite
from tests.live.registry import Faults, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Result
    from tests.forked import Process
    from tests.live.provide import Provided
    from tests.live.server import RealServer

BOUND_S = 40.0
QUICK = ["-o", "ollama_stall=2"]


@pytest.fixture
def suite(
    pytester: pytest.Pytester, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[UserSuite]:
    """A suite of one test whose OLLAMA_HOST is the server."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    suite = UserSuite(pytester)
    suite.write({"test_it.py": "def test_it(): pass\n"})
    with ExitStack() as runs:
        start = suite.start

        def started(*args: str) -> Process:
            process = start(*args)
            # A test that fails must not leave a run behind.
            runs.callback(process.communicate)
            runs.callback(process.kill)
            return process

        monkeypatch.setattr(suite, "start", started)
        yield suite


def until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def heard(process: Process, words: str) -> str:
    """Return what a run prints up to the line with *words*."""
    assert process.stdout is not None
    lines = []
    watchdog = threading.Timer(BOUND_S, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if words in line:
                return "".join(lines)
    finally:
        watchdog.cancel()
    raise AssertionError(f"{words!r} is not in\n{''.join(lines)}")


def ended(process: Process) -> tuple[int, str]:
    """Return how a run ended and what it printed since it was last heard."""
    out, _ = process.communicate(timeout=BOUND_S)
    return process.wait(), out


def preload(*names: str) -> str:
    return "--ollama-preload=" + " ".join(f"{name},insecure=true" for name in names)


def pulls(server: RealServer) -> int:
    """How many requests for a pull are over."""
    return server.log_text().count('"/api/pull"\n')


def downloads(registry: Registry, least: int = 1000) -> list[tuple[str, int]]:
    """The ranges of weights that were asked for, and how much of each was sent."""
    return [
        (one.range.removeprefix("bytes="), one.sent)
        for one in registry.requests
        if one.range is not None and int(one.range.rpartition("-")[2]) >= least
    ]


def manifests(registry: Registry) -> int:
    return sum("/manifests/" in one.path for one in registry.requests)


def check_ready(run: Result) -> None:
    assert 0 == run.ret, run.out + run.err
    assert {"passed": 1} == run.counts
    # What was there already needs no row.
    assert {"✓"} >= {row[0] for row in run.table if row[0] in "✓✗"}


# Stalls


def test_a_stalled_download_is_dropped_and_goes_on_behind_the_stall(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.stall_after = 1_000_000
    model = own_registry.name("completion")
    run = suite.run(preload(model), *QUICK)
    check_ready(run)
    assert (
        f"{model} pulling: no new byte for 2 s (--ollama-stall) at 1.0 MB of 1.7 MB, resuming"
        in (run.ours)
    )
    assert "resumed once" in run.table[0]
    # Nothing came twice, and the server's own retry, which begins anew, never came to pass.
    assert [("0-1657471", 1_000_000), ("1000000-1657471", 657_472)] == downloads(own_registry)
    assert 2 == pulls(server)
    assert "stalled; retrying" not in server.log_text()


def test_each_new_byte_gives_a_stalling_download_five_more_tries(
    suite: UserSuite, own_registry: Registry
) -> None:
    own_registry.faults.stall_after = 250_000
    run = suite.run(preload(own_registry.name("completion")), "-o", "ollama_stall=0.5")
    check_ready(run)
    resumed = re.search(r"resumed (\d+) times", run.table[0])
    assert resumed is not None
    assert 6 <= int(resumed[1])
    assert 1_657_472 == sum(sent for _, sent in downloads(own_registry))


def test_a_download_that_stalls_forever_fails_after_five_resumptions(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.stall_at = 1_000_000
    model = own_registry.name("completion")
    run = suite.run(preload(model), "-o", "ollama_stall=0.5")
    assert 2 == run.ret
    assert (
        f"{model} (from --ollama-preload) could not be pulled: no new byte for 0.5 s "
        "(--ollama-stall), also after 5 resumptions. [pull-failed]\n"
        "→ The registry sends nothing. Run again: a pull goes on where it stopped. --ollama-on-unavailable=skip goes on without it."
    ) in run.err
    assert 6 <= pulls(server)
    # What was there is kept for the next run.
    own_registry.faults = Faults()
    own_registry.forget()
    check_ready(suite.run(preload(model)))
    assert [("1000000-1657471", 657_472)] == downloads(own_registry)


@pytest.mark.parametrize("phase", ["manifest_s", "head_s"])
def test_silence_is_no_stall(
    suite: UserSuite, server: RealServer, own_registry: Registry, phase: str
) -> None:
    setattr(own_registry.faults, phase, 2.5)
    model = own_registry.name("completion")
    run = suite.run(preload(model), *QUICK)
    check_ready(run)
    assert "resum" not in run.out
    assert f"{model} pulling, the registry has not answered yet" in run.ours
    assert 1 == pulls(server)


def test_silence_has_its_own_limit(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.manifest_s = BOUND_S
    run = suite.run(preload(own_registry.name("completion")), "-o", "ollama_load_timeout=1")
    assert 2 == run.ret
    assert (
        "no word from the server for 1 s (--ollama-load-timeout). [pull-failed]\n→ Is the server"
        in run.err
    )
    until(lambda: 1 == pulls(server))


def test_a_part_that_two_models_share_is_waited_for_however_slow_its_head(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    # Both ask for the same parameters. The second one's stream stands without a size meanwhile, and
    # leaving it crashes this server.
    own_registry.faults.head_s = 3.0
    names = [own_registry.name(model) for model in ("completion", "completion-b")]
    run = suite.run(preload(*names), *QUICK, "--ollama-wait=1")
    check_ready(run)
    assert server.pid in server.processes()


# What passes, and what does not


def test_a_busy_registry_is_asked_again_after_pauses(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.unavailable = 2
    model = own_registry.name("completion")
    run = suite.run(preload(model))
    check_ready(run)
    busy = f"{model} pulling: pull model manifest: 503: the registry is busy, resuming"
    assert [busy, f"{busy} (2 of 5)"] == [line for line in run.ours if "resuming" in line]
    assert "resumed 2 times" in run.table[0]
    assert (3, 3) == (pulls(server), manifests(own_registry))


def test_a_connection_that_breaks_is_left_to_the_server(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    # It goes on by itself, and loses nothing.
    own_registry.faults = Faults(drop_at=1_000_000, drops=1)
    run = suite.run(preload(own_registry.name("completion")))
    check_ready(run)
    assert "resum" not in run.out
    assert [("0-1657471", 1_000_000), ("1000000-1657471", 657_472)] == downloads(own_registry)
    assert 1 == pulls(server)


def test_a_download_that_the_server_is_winding_up_is_no_failure(
    suite: UserSuite, own_registry: Registry
) -> None:
    # After each break the server sleeps twice as long, notices only then that it was left, and
    # tells the next one that its download was cancelled.
    own_registry.faults = Faults(drop_at=1_000_000, drops=2)
    run = suite.run(preload(own_registry.name("completion")), *QUICK)
    check_ready(run)
    assert "no new byte for 2 s (--ollama-stall) at 1.0 MB of 1.7 MB, resuming" in run.out
    assert 1_657_472 == sum(sent for _, sent in downloads(own_registry))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (
            Faults(unauthorized=True),
            "unauthorized: access denied. [pull-failed]\n→ The registry wants",
        ),
        (Faults(unknown=True), "the registry has no such model (pull model manifest: file does"),
    ],
    ids=["unauthorized", "unknown"],
)
def test_what_does_not_pass_fails_at_once(
    suite: UserSuite, server: RealServer, own_registry: Registry, faults: Faults, words: str
) -> None:
    own_registry.faults = faults
    run = suite.run(preload(own_registry.name("completion")))
    assert 2 == run.ret
    assert words in run.out + run.err
    assert "resuming" not in run.out
    assert 1 == pulls(server)


def test_a_registry_without_tls_is_named_with_the_flag(
    suite: UserSuite, own_registry: Registry
) -> None:
    model = own_registry.name("completion")
    run = suite.run(f"--ollama-preload={model}")
    assert 2 == run.ret
    assert f"For a registry without TLS write {model},insecure=true." in run.err


def test_a_download_that_is_damaged_once_is_repeated(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.wrong_bytes = 1
    run = suite.run(preload(own_registry.name("completion")))
    check_ready(run)
    assert "pulling: digest mismatch, file must be downloaded again: want sha256:" in run.out
    assert 2 * [("0-1657471", 1_657_472)] == downloads(own_registry)


def test_a_download_that_is_damaged_twice_fails(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.wrong_bytes = 9
    run = suite.run(preload(own_registry.name("completion")))
    assert 2 == run.ret
    assert "The server has thrown the damaged part away: run again." in run.err
    assert 2 == pulls(server)


def test_a_server_that_dies_in_a_download_and_comes_back_is_resumed(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.stall_at = 8_000_000
    model = own_registry.name("big")
    process = suite.start(preload(model))
    heard(process, f"ollama: {model} pulling 35 MB")
    until(lambda: [8_000_000] == [sent for _, sent in downloads(own_registry)])
    server.kill()
    told = heard(process, f"ollama: {model} pulling: connection lost at ")
    assert told.endswith(" of 35 MB, resuming\n")
    own_registry.faults = Faults()
    server.restart()
    code, out = ended(process)
    assert 0 == code, out
    assert "resumed once" in out
    assert [model] == server.loaded()


# Several runs, several models


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_two_runs_download_a_model_once(
    suite: UserSuite, server: RealServer, own_registry: Registry, name: str
) -> None:
    own_registry.faults.stall_at = 1_000_000
    model = own_registry.name("completion")
    first = suite.start(preload(model))
    until(lambda: downloads(own_registry))
    second = suite.start(preload(model), f"--ollama-host={name}:{server.port}")
    heard(second, f"ollama: {model} waits: another run is pulling it")
    own_registry.faults = Faults()
    outs = []
    for run in (first, second):
        code, out = ended(run)
        assert 0 == code, out
        outs.append("pulled" in out)
    assert [True, False] == outs
    assert (1, 1) == (pulls(server), manifests(own_registry))
    assert [("0-1657471", 1_657_472)] == downloads(own_registry)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_a_run_takes_over_the_download_of_one_that_ends(
    suite: UserSuite, server: RealServer, own_registry: Registry, number: signal.Signals
) -> None:
    own_registry.faults.stall_at = 1_000_000
    model = own_registry.name("completion")
    first = suite.start(preload(model))
    until(lambda: [1_000_000] == [sent for _, sent in downloads(own_registry)])
    second = suite.start(preload(model))
    heard(second, f"ollama: {model} waits: another run is pulling it")
    first.send_signal(number)
    first.communicate(timeout=BOUND_S)
    # Not before: a server that goes on at once may have all of it before the first run has ended.
    own_registry.faults.stall_s = 0
    code, out = ended(second)
    assert 0 == code, out
    assert server.pid in server.processes()
    assert 2 == manifests(own_registry)


def test_models_come_side_by_side_and_each_is_loaded_as_soon_as_it_is_there(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    # All parts of the others are shorter than where the big one is held.
    own_registry.faults.stall_at = 20_000_000
    big, *small = (own_registry.name(one) for one in ("big", "completion", "completion-b", "embed"))
    process = suite.start(preload(big, *small))
    until(lambda: set(small) == set(server.loaded()))
    assert own_registry.faults.stall_at is not None
    assert [20_000_000] == [sent for _, sent in downloads(own_registry, least=10_000_000)]
    own_registry.faults = Faults()
    code, out = ended(process)
    assert 0 == code, out
    assert big in server.loaded()
    assert 4 == pulls(server)


def test_no_more_than_four_come_side_by_side(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.stall_at = 100_000
    models = ("completion", "completion-b", "completion-c", "completion-d", "embed")
    process = suite.start(preload(*(own_registry.name(one) for one in models)))
    until(lambda: 4 == sum(100_000 == sent for _, sent in downloads(own_registry)))
    assert 4 == manifests(own_registry)
    own_registry.faults = Faults()
    code, out = ended(process)
    assert 0 == code, out
    assert 5 == manifests(own_registry)


def test_the_size_is_said_while_hardly_anything_has_come(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    own_registry.faults.stall_at = 100_000
    model = own_registry.name("big")
    process = suite.start(preload(model))
    heard(process, f"ollama: {model} pulling 35 MB")
    assert 100_000 >= sum(sent for _, sent in downloads(own_registry))
    own_registry.faults = Faults()
    assert 0 == ended(process)[0]


# What is there already


@pytest.fixture
def there(server: RealServer, parts: Provided) -> tuple[str, int]:
    """A model whose registry is away; its name, and the number of pulls until now."""
    with Registry(parts.models) as registry:
        server.pull(registry.name("completion"))
        return registry.name("completion"), pulls(server)


@pytest.mark.parametrize("quiet", [[], ["-q"], ["-qq"]], ids=["normal", "q", "qq"])
def test_without_its_registry_what_is_there_is_used_with_a_warning(
    suite: UserSuite, server: RealServer, there: tuple[str, int], quiet: list[str]
) -> None:
    model, before = there
    run = suite.run(preload(model), "--ollama-pull=always", *quiet)
    assert 0 == run.ret
    assert (
        f"ollama: {model} is not refreshed, what is there is used: pull model manifest: "
        f'Get "http://localhost:'
    ) in run.out
    assert "connection refused" in run.out
    assert [model] == server.loaded()
    assert before + 1 == pulls(server)


def test_what_is_up_to_date_is_not_downloaded_again(
    suite: UserSuite, server: RealServer, own_registry: Registry
) -> None:
    model = own_registry.name("completion")
    server.pull(model)
    own_registry.forget()
    run = suite.run(preload(model), "--ollama-pull=always")
    check_ready(run)
    assert f"{model} is up to date" in run.ours
    assert "pulling" not in run.out
    assert ["GET"] == [one.method for one in own_registry.requests]
    assert 1 == manifests(own_registry)


# Damaged weights


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("broken", "llama-server process has terminated"),
        ("broken-cut", "tensor"),
    ],
)
def test_weights_that_were_pushed_damaged_are_named_with_their_cure(
    suite: UserSuite, own_registry: Registry, model: str, words: str
) -> None:
    name = own_registry.name(model)
    run = suite.run(preload(name))
    assert 2 == run.ret
    assert f"{name} does not load: " in run.out + run.err
    assert words in run.out + run.err
    assert f"Its weights look damaged: 'ollama rm {name}' and pull it again." in run.out + run.err


def test_weights_that_were_damaged_on_the_disk_are_named_and_the_cure_helps(
    suite: UserSuite, server: RealServer, own_registry: Registry, parts: Provided
) -> None:
    model = own_registry.name("completion")
    server.pull(model)
    weights = max((server.models / "blobs").iterdir(), key=lambda blob: blob.stat().st_size)
    with weights.open("r+b") as file:
        file.truncate(800_000)
    run = suite.run(preload(model))
    assert 2 == run.ret
    assert f"Its weights look damaged: 'ollama rm {model}' and pull it again." in run.out + run.err
    environ = {**os.environ, "OLLAMA_HOST": server.url}
    subprocess.run([parts.ollama, "rm", model], env=environ, check=True, capture_output=True)
    check_ready(suite.run(preload(model)))
