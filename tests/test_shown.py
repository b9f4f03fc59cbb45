"""What a run shows, and where it stays silent."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.report.terminal import Screen, summary_lines
from pytest_ollama_warmup.warmup.plan import Target
from pytest_ollama_warmup.warmup.record import Outcome, Record, Step
from pytest_ollama_warmup.warmup.spec import ModelSpec
from pytest_ollama_warmup.warmup.work import Event
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ollama_warmup.warmup.work import Phase

LIST = "--ollama-preload=llama3.2:1b"
TIMES = re.compile(r"\d+(\.\d+)? m?s")


def without_times(lines: list[str]) -> list[str]:
    # On a busy machine a load takes long enough for the summary to say what went on meanwhile.
    beside = re.compile(r"(, T s of it)? while pytest started and collected")
    return [beside.sub("", TIMES.sub("T s", line)) for line in lines]


def test_a_run_shows_header_changes_and_table(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST)
    assert [
        f"{suite.ollama.url} (from OLLAMA_HOST), preload llama3.2:1b (from --ollama-preload), "
        "missing models: skip (CI not set), but listed ones end the run",
        "llama3.2:1b pulling 1.3 MB",
        "llama3.2:1b pulled in T s, loading",
        "llama3.2:1b ready: pulled 1.3 MB in T s, loaded in T s",
    ] == without_times(run.ours)
    rows = [line for line in without_times(run.table) if not line.startswith("waited ")]
    assert ["✓ llama3.2:1b   ready   pulled 1.3 MB in T s, loaded in T s   1 test"] == rows


@pytest.mark.parametrize("args", [[LIST], [LIST, "-s"], [LIST, "-n2"]], ids=["single", "s", "n2"])
def test_the_header_stands_before_pytests_own(suite: Suite, args: list[str]) -> None:
    suite.write(ONE_TEST)
    out = suite.run(*args).out
    assert 0 <= out.index("ollama: http://") < out.index("test session starts")


def test_with_a_mark_only_the_header_comes_after_collection(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    out = suite.run().out
    assert out.index("collected 1 item") < out.index("ollama: http://")


def test_quiet_shows_pulls_and_the_table(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "-q")
    assert ["llama3.2:1b pulling 1.3 MB", "llama3.2:1b pulled in T s, loading"] == without_times(
        run.ours
    )
    assert run.table[0].startswith("✓ llama3.2:1b")


def test_very_quiet_shows_nothing_but_errors(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "-qq")
    assert "" == run.out.replace(".", "").replace("[100%]", "").strip()
    suite.ollama.stop()
    run = suite.run("-qq", "--ollama-wait=0")
    assert run.ours[0].startswith("no Ollama at ")
    assert [
        "✗ llama3.2:1b   failed   no Ollama: connection refused   test_chat.py::test_tone"
    ] == run.table


def test_no_summary_leaves_out_the_table(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "--no-summary")
    assert {"passed": 1} == run.counts
    assert [] == run.table


def test_without_a_terminal_plugin_the_work_is_done_in_silence(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "-p", "no:terminal")
    assert ("", 0) == (run.out, run.ret)
    assert 1 == len(suite.ollama.loads)


def test_a_terminal_without_signs_gets_ascii(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    suite.write(ONE_TEST)
    run = suite.run(LIST)
    assert run.table[0].startswith("+ llama3.2:1b   ready")
    assert run.out.isascii()


def in_a_terminal(command: list[str], cwd: Path, environ: dict[str, str]) -> str:
    """Run *command* in a pseudo-terminal of 100 columns; return all that it wrote."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd=cwd, env=environ, close_fds=True
    )
    os.close(side)
    written = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.2)[0]:
            try:
                chunk = os.read(main, 65536)
            except OSError:
                break
            if not chunk:
                break
            written += chunk
    os.close(main)
    assert 0 == process.wait(10)
    return written.decode()


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n2"]], ids=["single", "n2"])
def test_a_terminal_gets_live_bars_that_leave_no_trace(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, size=1_300_000, pull_rate=2_000_000, load_s=0.5))
    suite.write(ONE_TEST)
    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", *workers, LIST]
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    out = in_a_terminal(command, suite.pytester.path, environ)
    assert "━" in out
    assert re.search(r"pulling .* of 1\.3 MB", out)
    assert "llama3.2:1b ready: pulled 1.3 MB in" in out
    # The cursor, hidden while bars move, is shown again.
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")


def test_a_terminal_that_is_drawn_nothing_on_does_not_pay_for_bars(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            **ONE_TEST,
            "conftest.py": """
            import sys

            def pytest_unconfigure():
                print("RICH", "rich" in sys.modules)
            """,
        }
    )
    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", LIST]
    out = in_a_terminal(command, suite.pytester.path, {**os.environ, "TERM": "xterm-256color"})
    assert "1 passed" in out
    assert "RICH False" in out


def a_pull(completed: int, total: int = 1_300_000_000) -> Event:
    return Event(Target(ModelSpec("llama3.2:1b"), ""), "pulling", completed, total)


def test_a_log_gets_a_progress_line_at_most_every_ten_seconds() -> None:
    lines: list[str] = []
    now = 0.0
    screen = Screen(lambda line, **colours: lines.append(line), clock=lambda: now)
    for now in range(25):
        screen.tick(a_pull(54_000_000 * now))
    assert [
        "ollama: llama3.2:1b pulling 1.3 GB",
        "ollama: llama3.2:1b pulling 540 MB of 1.3 GB, 54 MB/s, 14.1 s left",
        "ollama: llama3.2:1b pulling 1.1 GB of 1.3 GB, 54 MB/s, 4.1 s left",
    ] == lines


@pytest.mark.parametrize("verbosity", [0, -1, -2])
def test_a_model_that_could_not_be_refreshed_is_warned_of_however_quiet(verbosity: int) -> None:
    lines: list[tuple[str, dict[str, bool]]] = []
    screen = Screen(
        lambda line, **colours: lines.append((line, colours)),
        verbosity=verbosity,
        clock=lambda: 0.0,
    )
    target = Target(ModelSpec("llama3.2:1b"), "")
    screen.tick(Event(target, "pulling"))
    screen.tick(Event(target, "outdated", why="is not refreshed"))
    screen.tick(Event(target, "present"))
    screen.tick(Event(target, "loading"))
    assert [("ollama: llama3.2:1b is not refreshed", {"yellow": True})] == lines


def test_a_load_that_takes_a_while_is_said_once() -> None:
    lines: list[str] = []
    times = iter([0.0, 0.0, 1.0, 2.0, 3.0, 9.0])
    screen = Screen(lambda line, **colours: lines.append(line), clock=lambda: next(times))
    screen.tick(Event(Target(ModelSpec("llama3.2:1b"), ""), "loading"))
    for _ in range(4):
        screen.tick(None)
    assert ["ollama: llama3.2:1b loading"] == lines


def test_the_table_of_the_design() -> None:
    record = Record()
    pull = Step(kind="pull", start=0, seconds=24.1, size=1_300_000_000)
    load = Step(kind="load", start=0, seconds=2.1)
    record.add(Outcome(key="a", model="llama3.2:1b", status="ready", steps=(pull, load)))
    words = "pull model manifest: file does not exist"
    record.add(Outcome(key="b", model="phi9", status="failed", brief=words))
    record.tests = {"a": ["t"] * 41, "b": ["tests/test_chat.py::test_tone"]}
    assert [
        "✓ llama3.2:1b   ready    pulled 1.3 GB in 24.1 s, loaded in 2.1 s   41 tests",
        f"✗ phi9          failed   {words}   tests/test_chat.py::test_tone",
    ] == summary_lines(record)
    assert 1 == len(summary_lines(record, only_failed=True))
    assert all(line.isascii() for line in summary_lines(record, plain=True))


def test_variables_that_lead_elsewhere_are_hinted_at(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    monkeypatch.setenv("OLLAMA_MODELS", "llama3.2:1b mistral:7b")
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://me:s3cret@elsewhere:1/v1")
    assert [
        "OLLAMA_MODELS looks like a list of models, but is the server's storage directory; "
        "list them in OLLAMA_PRELOAD_MODELS.",
        "OLLAMA_BASE_URL points elsewhere (http://***@elsewhere:1/v1), to another server. "
        "--ollama-export OLLAMA_BASE_URL sets it to this one.",
    ] == suite.run().ours[1:3]
    monkeypatch.setenv("OLLAMA_MODELS", "/var/lib/models")
    monkeypatch.setenv("OLLAMA_BASE_URL", f"{suite.ollama.url}/v1/")
    assert not [line for line in suite.run().ours if "OLLAMA_" in line.replace("OLLAMA_HOST", "")]


def test_a_limit_below_the_servers_own_is_warned_about(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    run = suite.run("-o", "ollama_load_timeout=30")
    assert "--ollama-load-timeout is 30 s, shorter than the 5 min after which the server" in run.out


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("loading", "loading"),
        ("waiting", "waits: another run is pulling it"),
        ("busy", "waits: the server's queue is full"),
    ],
)
@pytest.mark.parametrize(("verbosity", "every"), [(0, 10), (-1, 60), (-2, 0)])
def test_what_takes_minutes_gives_a_sign_of_life(
    phase: Phase, words: str, verbosity: int, every: int
) -> None:
    lines: list[str] = []
    now = 1000.0
    screen = Screen(
        lambda line, **colours: lines.append(line), verbosity=verbosity, clock=lambda: now
    )
    screen.tick(Event(Target(ModelSpec("m"), ""), phase))
    lines.clear()
    for _ in range(600):
        now += 0.5
        screen.tick(None)
    told = [line for line in lines if line.endswith(" s")]
    assert (300 // every if every else 0) == pytest.approx(len(told), abs=1)
    assert all(re.fullmatch(rf"ollama: m {words}, \d+ s", line) for line in told)
