"""What a run shows, and where it stays silent."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from pytest_ollama_warmup.config.model_specs import ModelSpec
from pytest_ollama_warmup.report.bars import Row, lay_out
from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.report.summary import ready_after, summary_lines
from pytest_ollama_warmup.text import shorten
from pytest_ollama_warmup.warmup.job import Event
from pytest_ollama_warmup.warmup.outcome import Outcome, Step
from pytest_ollama_warmup.warmup.plan import Target
from pytest_ollama_warmup.warmup.record import Record
from tests import terminals
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from pytest_ollama_warmup.warmup.job import Phase
    from pytest_ollama_warmup.warmup.outcome import StepKind

THERE = replace(LLAMA, present=True)
LIST = "--ollama-preload=llama3.2:1b"
TIMES = re.compile(r"\d+(\.\d+)? m?s")


def without_times(lines: list[str]) -> list[str]:
    return [TIMES.sub("T s", line) for line in lines]


def test_a_run_shows_header_changes_and_table(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST)
    assert [
        "llama3.2:1b pulling 1.3 MB",
        f"{suite.ollama.url} (OLLAMA_HOST), preload: llama3.2:1b (--ollama-preload)",
        "llama3.2:1b pulled 1.3 MB in T s, loaded in T s",
    ] == without_times(run.ours)
    rows = [line for line in without_times(run.table) if not line.startswith("ready after ")]
    assert ["✓ llama3.2:1b   pulled 1.3 MB in T s   loaded in T s   1 test"] == rows


@pytest.mark.parametrize("args", [[LIST], [LIST, "-s"], [LIST, "-n2"]], ids=["single", "s", "n2"])
def test_the_header_stands_in_pytests_own(suite: Suite, args: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    out = suite.run(*args).out
    assert out.index("test session starts") < out.index("ollama: http://") < out.index("rootdir: ")
    assert 1 == out.count("ollama: http://")


def test_with_v_the_header_says_what_missing_models_do(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    assert (
        f"{suite.ollama.url} (OLLAMA_HOST), preload: llama3.2:1b (--ollama-preload), "
        "unavailable models: skip (CI not set), but listed ones end the run"
    ) == suite.run(LIST, "-v").ours[0]
    out = suite.run("-v").out
    header = f"ollama: {suite.ollama.url} (OLLAMA_HOST), unavailable models: skip (CI not set)\n"
    assert out.index("collected 1 item") < out.index(header)


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
@pytest.mark.parametrize("listed", [[], [LIST]], ids=["mark", "listed"])
def test_of_a_model_in_memory_one_line_is_said_and_no_table(
    suite: Suite, args: list[str], listed: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    suite.run()
    run = suite.run(*listed, *args)
    assert {"passed": 1} == run.counts
    assert ["llama3.2:1b already loaded"] == [one for one in run.ours if "http" not in one]
    assert [] == run.table
    assert re.fullmatch(
        "✓ llama3.2:1b   already loaded   1 test", suite.run(*listed, *args, "-v").table[0]
    )


def test_models_that_are_ready_at_once_share_a_line(suite: Suite) -> None:
    for name in ("a:1", "b:1"):
        suite.ollama.add(replace(THERE, name=name))
    mark = '@pytest.mark.requires_model("a:1", "b:1")'
    suite.write({"test_it.py": f"import pytest\n\n{mark}\ndef test_it(): pass\n"})
    suite.run()
    assert ["a:1, b:1 already loaded"] == suite.run().ours


def test_a_load_that_took_a_while_gets_a_table(suite: Suite) -> None:
    suite.ollama.add(replace(THERE, load_s=1.1))
    suite.write(ONE_TEST)
    run = suite.run()
    assert ["✓ llama3.2:1b   loaded in T s   1 test"] == without_times(run.table)


def test_quiet_shows_pulls_and_the_table(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "-q")
    assert ["llama3.2:1b pulling 1.3 MB"] == run.ours
    assert run.table[0].startswith("✓ llama3.2:1b")


def test_very_quiet_shows_nothing_but_errors(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run(LIST, "-qq")
    assert "" == run.out.replace(".", "").replace("[100%]", "").strip()
    suite.ollama.stop()
    run = suite.run("-qq", "--ollama-wait=0")
    assert run.ours[0].startswith("no Ollama at ")
    assert ["✗ llama3.2:1b   no Ollama: connection refused   1 test"] == run.table


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
    assert run.table[0].startswith("+ llama3.2:1b   pulled")
    assert run.out.isascii()


def in_a_terminal(
    suite: Suite,
    *args: str,
    columns: int = 80,
    environ: dict[str, str] | None = None,
    resize: tuple[str, int] | None = None,
    fresh: bool = False,
) -> terminals.Shown:
    # pytester takes colours away.
    away = ("COLUMNS", "LINES", "PY_COLORS")
    variables = {k: v for k, v in os.environ.items() if k not in away}
    variables |= {"TERM": "xterm-256color", **(environ or {})}
    cwd = suite.pytester.path
    return terminals.run(
        suite.command(*args)[2:], cwd, variables, columns, resize=resize, fresh=fresh
    )


SLOW = replace(LLAMA, size=3_000_000, pull_rate=2_000_000, load_s=0.5)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_terminal_gets_live_bars_that_leave_no_trace(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(SLOW)
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, *workers, LIST)
    assert 0 == shown.code
    bars = [line for line in shown.drawn if "━" in line]
    assert bars, shown.drawn
    assert all(re.fullmatch(r"  llama3.2:1b  [━╸ ]+  .*[\d.]+/3.0 MB.*", one) for one in bars)
    assert "cyan" == shown.colour_of("━" * 5)
    where = suite.ollama.url.removeprefix("http://")
    assert f"ollama: preloading 1 model on {where}" in shown.drawn
    # The cursor, hidden while bars move, is shown again.
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l")
    assert "━" not in shown.text
    assert "preloading" not in shown.text
    said = [line for line in shown.screen if line.startswith("ollama: ")]
    assert [
        f"ollama: {suite.ollama.url} (OLLAMA_HOST), preload: llama3.2:1b",
        "ollama: llama3.2:1b pulled 3.0 MB in T s, loaded in T s",
    ] == without_times(said)
    # Neither above the header nor below what was collected is a line left empty.
    assert shown.screen[1 if not shown.screen[0] else 0].startswith("=")


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("name", ["llama3.2:1b", "registry.example.com/team/llama3.2-vision:11b"])
def test_nothing_is_wider_than_the_terminal(suite: Suite, columns: int, name: str) -> None:
    suite.ollama.add(replace(SLOW, name=name))
    suite.write({"test_it.py": ONE_TEST["test_chat.py"].replace("llama3.2:1b", name)})
    shown = in_a_terminal(suite, f"--ollama-preload={name}", columns=columns)
    assert 0 == shown.code, shown.text
    bars = [re.search("[━╸]+", line) for line in shown.drawn if "/3.0 MB" in line]
    assert bars
    assert all(one and len(one[0]) >= 10 for one in bars), shown.drawn
    # Of pytest's own lines some are.
    pytests = ("rootdir:", "cachedir:", "plugins:", "platform ")
    ours = [line for line in shown.drawn if not line.startswith(pytests)]
    assert [] == [line for line in ours if len(line) > columns]
    start = shown.screen.index(next(one for one in shown.screen if "ollama models" in one))
    row = shown.screen[start + 1]
    assert row.startswith("✓ ")
    assert ":1" in row
    assert "pulled 3.0 MB in " in row
    assert shown.screen[start + 2].startswith("ready after ")


@pytest.mark.parametrize(
    ("args", "environ"), [([], {"NO_COLOR": "1"}), (["--color=no"], {})], ids=["NO_COLOR", "option"]
)
def test_bars_without_colours_still_move(
    suite: Suite, args: list[str], environ: dict[str, str]
) -> None:
    suite.ollama.add(SLOW)
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, LIST, *args, environ=environ)
    assert not re.search(r"\x1b\[[0-9;]+m", shown.raw.replace("\x1b[0m", ""))
    bars = {line for line in shown.drawn if "/3.0 MB" in line}
    # What is still to come is left out: in one colour nobody could tell it from the rest.
    assert len({one.count("━") for one in bars}) > 1


def test_a_dumb_terminal_gets_the_lines_of_a_log(suite: Suite) -> None:
    suite.ollama.add(SLOW)
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, LIST, environ={"TERM": "dumb"})
    assert "\x1b" not in shown.raw
    assert shown.screen[0] == "ollama: llama3.2:1b pulling 3.0 MB"


@pytest.mark.parametrize("args", [["-q"], ["-s"], ["-v"]], ids=["q", "s", "v"])
def test_bars_come_and_go_however_much_is_said(suite: Suite, args: list[str]) -> None:
    suite.ollama.add(SLOW)
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, LIST, *args)
    assert [line for line in shown.drawn if "/3.0 MB" in line]
    assert "/3.0 MB" not in shown.text


def test_very_quiet_draws_nothing(suite: Suite) -> None:
    suite.ollama.add(SLOW)
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, LIST, "-qq")
    assert [] == [line for line in shown.drawn if "llama" in line]


def test_bars_follow_a_terminal_that_becomes_narrower(suite: Suite) -> None:
    suite.ollama.add(replace(SLOW, size=5_000_000))
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, LIST, columns=100, resize=("/5.0 MB", 60))
    before, _, after = shown.raw.partition("\x1b[0Z")
    of_width = [terminals.Shown(one, 0, 60).drawn for one in (before, after)]
    assert max(len(line) for line in of_width[0] if "/5.0 MB" in line) > 60
    # One may have been under way.
    drawn = [line for line in of_width[1][2:] if "/5.0 MB" in line]
    assert drawn
    assert all(len(line) <= 60 and re.search("[━╸]{10}", line) for line in drawn)
    assert 0 == shown.code


def test_outcomes_have_the_colours_of_pytest(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True, load_s=1.1))
    suite.ollama.add(replace(LLAMA, name="other:1", in_registry=False))
    other = ONE_TEST["test_chat.py"].replace("llama3.2:1b", "other:1")
    suite.write({**ONE_TEST, "test_other.py": other})
    skipped = in_a_terminal(suite)
    assert "yellow" == skipped.colour_of("ollama: other:1 is not pulled")
    assert ("green", "yellow") == (skipped.colour_of("✓"), skipped.colour_of("✗"))
    failed = in_a_terminal(suite, "--ollama-on-unavailable=fail")
    assert "red" == failed.colour_of("ollama: other:1 is not pulled") == failed.colour_of("✗")
    ended = in_a_terminal(suite, "--ollama-preload=other:1")
    assert 2 == ended.code
    assert "red" == ended.colour_of("ERROR: ollama: other:1")
    assert 1 == ended.text.count("the registry has no such")


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_failure_breaks_between_words_and_is_said_once(suite: Suite, columns: int) -> None:
    suite.write(ONE_TEST)
    shown = in_a_terminal(suite, columns=columns)
    start = next(i for i, line in enumerate(shown.screen) if line.startswith("ollama: "))
    said = shown.screen[start : shown.screen.index("", start)]
    joined = " ".join(line.strip() for line in said)
    assert (
        "ollama: llama3.2:1b is not pulled. [not-pulled] wanted by test_chat.py::test_tone: 1 test skipped "
        "→ Run 'ollama pull llama3.2:1b', or pytest with --ollama-pull=missing."
    ) == joined
    assert columns < 80 or 3 == len(said)


def test_a_terminal_that_is_drawn_nothing_on_does_not_pay_for_bars(suite: Suite) -> None:
    suite.ollama.add(THERE)
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
    shown = in_a_terminal(suite, LIST, fresh=True)
    assert "1 passed" in shown.text
    assert "RICH False" in shown.text


# Layout, without a terminal.


@pytest.mark.parametrize("columns", range(40, 201, 5))
@pytest.mark.parametrize("plain", [False, True], ids=["", "ascii"])
def test_a_pull_has_its_bar_at_any_width(columns: int, plain: bool) -> None:
    rows = [
        Row(
            "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
            "",
            191_000_000,
            274_000_000,
            55e6,
            95.0,
        ),
        Row("llama3.2:1b", "loaded in 1.0 s", ready=True),
        Row("phi9", "not in the registry", ready=False),
        Row("qwen3:4b", "loading, 3 s"),
    ]
    heading = "ollama: preloading 4 models on 127.0.0.1:11434"
    lines = [
        "".join(text for text, _ in line) for line in lay_out(heading, rows, columns, plain=plain)
    ]
    assert all(len(line) <= columns for line in lines)
    assert re.search(r"[━╸]{10}|[#.]{10}", lines[1])
    assert "191/274 MB" in lines[1]
    assert ("55 MB/s" in lines[1]) <= ("95 s left" in lines[1])
    assert columns < 120 or "55 MB/s" in lines[1]
    assert lines[1].startswith("  hf.")


def test_a_bar_does_not_change_its_length_with_the_figures() -> None:
    lengths = set()
    for completed in (1_000_000, 99_500_000, 999_000_000):
        row = Row("m", "", completed, 1_000_000_000, 3e6, (1e9 - completed) / 3e6)
        lengths.add(len("".join(one for one, _ in lay_out("", [row], 80)[1][1:3])))
    assert 1 == len(lengths)


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("llama3.2:1b", 11, "llama3.2:1b"),
        ("llama3.2-vision:11b", 12, "llama3…n:11b"),
        ("abcdef", 5, "ab…ef"),
        ("abcdef", 4, "ab…f"),
    ],
)
def test_a_long_name_loses_its_middle(name: str, width: int, short: str) -> None:
    assert short == shorten(name, width)


def test_times_of_a_table_stand_below_one_another() -> None:
    record = Record()
    for name, load_s, tests in (("a", 12.3, 1), ("bb", 1.2, 41), ("c", 0.0, 0)):
        steps = (Step(kind="load", start=0, seconds=load_s),) if load_s else ()
        pull = (Step(kind="pull", start=0, seconds=5.4, size=274_000_000),) if name == "bb" else ()
        notes = () if load_s else ("already loaded",)
        one = Outcome(key=name, model=name, status="ready", steps=(*pull, *steps), notes=notes)
        record.add(one._replace(already_loaded=not load_s))
        record.tests[name] = ["t"] * tests
    assert [
        "✓ a                             loaded in 12.3 s    1 test",
        "✓ bb   pulled 274 MB in 5.4 s   loaded in  1.2 s   41 tests",
        "✓ c                             already loaded",
    ] == summary_lines(record)


def prepared(*busy: tuple[float, float], clock_started: float = 0.0, **steps: float) -> Record:
    """A record of a pull that began at 10, and of a load after it, of so many seconds each."""
    record, start, found = Record(), 10.0, []
    for kind, took in steps.items():
        found.append(Step(kind=cast("StepKind", kind), start=start, seconds=took))
        start += took
    record.add(Outcome(key="a", model="a", status="ready", steps=tuple(found)))
    record.busy, record.clock_started, record.prepared = list(busy), clock_started, 100.0
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (prepared((20, 30), load=6.0), "ready after 6 s, while pytest started and collected"),
        (
            prepared((15, 30), load=6.0),
            "ready after 6 s, 5 s of it while pytest started and collected",
        ),
        # pytest's own time would be shorter than this, without a word of why.
        (
            prepared((9, 14), (15, 30), clock_started=14, pull=4.0, load=2.0),
            "ready after 6 s, 4 s of it before pytest's clock started, 1 s while collecting",
        ),
        (prepared((9, 30), pull=4.0, load=2.0), "ready after 6 s"),
        # Its row says it.
        (prepared((9, 30), load=6.0), ""),
        (prepared(), ""),
    ],
)
def test_the_time_that_models_took_fits_pytests_own(record: Record, said: str) -> None:
    assert said == ready_after(record)


def test_of_a_run_without_tests_no_time_is_said() -> None:
    record = prepared((15, 30), load=6.0)
    record.prepared = 0.0
    assert "" == ready_after(record)


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
    record.add(Outcome(key="b", model="phi9", status="failed", brief="not in the registry"))
    record.tests = {"a": ["t"] * 41, "b": ["tests/test_chat.py::test_tone"]}
    assert [
        "✓ llama3.2:1b   pulled 1.3 GB in 24.1 s   loaded in 2.1 s       41 tests",
        "✗ phi9                                    not in the registry    1 test",
    ] == summary_lines(record)
    assert 1 == len(summary_lines(record, only_failed=True))
    assert all(line.isascii() for line in summary_lines(record, plain=True))
    for width in (40, 60, 80, 100):
        assert all(len(line) <= width for line in summary_lines(record, width=width))


def test_the_row_of_a_test_that_names_no_model_says_what_its_number_is(suite: Suite) -> None:
    suite.write(
        {
            "test_any.py": """
                import pytest

                @pytest.mark.requires_model
                def test_any(): pass
            """
        }
    )
    version = suite.ollama.state.version
    assert f"\n✓ the server   Ollama {version}   1 test\n" in suite.run("-v").out


def test_variables_that_lead_elsewhere_are_hinted_at(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    monkeypatch.setenv("OLLAMA_MODELS", "llama3.2:1b mistral:7b")
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://me:s3cret@elsewhere:1/v1")
    assert [
        "OLLAMA_MODELS looks like a list of models, but is the server's storage directory; "
        "list them in OLLAMA_PRELOAD_MODELS. [models-variable]",
        "OLLAMA_BASE_URL points elsewhere (http://***@elsewhere:1/v1), to another server. "
        "--ollama-export OLLAMA_BASE_URL sets it to this one. [base-url-elsewhere]",
    ] == suite.run().ours[:2]
    monkeypatch.setenv("OLLAMA_MODELS", "/var/lib/models")
    monkeypatch.setenv("OLLAMA_BASE_URL", f"{suite.ollama.url}/v1/")
    assert not [line for line in suite.run().ours if "OLLAMA_" in line.replace("OLLAMA_HOST", "")]


def test_a_limit_below_the_servers_own_is_warned_about(suite: Suite) -> None:
    suite.ollama.add(THERE)
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
