"""What a report shows of a record, whatever is in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

import pytest_ollama_warmup.report.files as files_module
from pytest_ollama_warmup.report.files import as_json, missing_for, page, write
from pytest_ollama_warmup.report.github import commands, step_summary
from pytest_ollama_warmup.report.headline import headline, subtitle
from pytest_ollama_warmup.report.markdown import code, escaped, markdown
from pytest_ollama_warmup.report.models import rows
from pytest_ollama_warmup.report.timeline import Bar, figures, ticks, timeline
from pytest_ollama_warmup.warmup.outcome import Known, Outcome, Reload, Step
from pytest_ollama_warmup.warmup.ran_tests import OtherTests, RanTest
from pytest_ollama_warmup.warmup.record import Finding, Record, RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = json.loads(Path(files_module.__file__).with_name("record.schema.json").read_text("utf-8"))
HOST = "http://127.0.0.1:11434"
T0 = 1_700_000_000.0


def model(name: str = "llama3.2:1b", **changes: Any) -> Outcome:
    steps = (Step("pull", T0 + 1, 24.0, 1_300_000_000), Step("load", T0 + 25, 2.0))
    full = Outcome(
        key=name,
        model=name,
        status="ready",
        by="main",
        steps=steps,
        aside=(Step("show", T0 + 0.9, 0.01), Step("verify", T0 + 24, 1.0)),
        digest="ab" * 32,
        size=1_300_000_000,
        memory=1_500_000_000,
        vram=1_000_000_000,
        capabilities=("completion",),
        context_length=4096,
        options=(("num_ctx", 4096),),
        host=HOST,
        origin="--ollama-preload",
    )
    return full._replace(**changes)


def failed(name: str, error: str = "no such model\nCheck the name.") -> Outcome:
    wait = (Step("pull", T0 + 1, 0.5),)
    return Outcome(name, name, "failed", error=error, brief="no such", host=HOST, aside=wait)


def ran(test: str, start: float, seconds: float | None = 0.5, **changes: Any) -> RanTest:
    one = RanTest(test, "main", HOST, ("llama3.2:1b",), 0.0, T0 + start, seconds, "passed")
    return one._replace(**changes)


def record(*outcomes: Outcome, tests: tuple[RanTest, ...] = ()) -> Record:
    """Return a run with *outcomes* whose *tests* have run."""
    found = Record()
    found.server = Outcome("server", "", "ready", notes=("0.33.0",), host=HOST)
    for one in outcomes or (model(),):
        found.add(one)
    found.ran = list(tests)
    found.waited_s = 26.5
    found.run = RunInfo(T0, T0 + 60, 0, "0.1.0", "9.2.0", "3.13.1", (("pull", "auto", "default"),))
    return found


def document(*outcomes: Outcome, tests: tuple[RanTest, ...] = ()) -> dict[str, Any]:
    found = record(*outcomes, tests=tests).to_dict()
    jsonschema.validate(found, SCHEMA)
    return found


FULL = record(
    model(),
    failed("phi9"),
    tests=(
        ran("test_a.py::test_1", 30),
        ran("test_a.py::test_2", 31, waited_s=1.5, cold=("llama3.2:1b",)),
        ran("test_a.py::test_3", 33, None, outcome=""),
    ),
)
FULL.known = [
    Known(
        "llama3.2:1b",
        "llama3.2:1b",
        host=HOST,
        reloads=(Reload("test_a.py::test_2", "main", T0 + 29.5, 5.0, 1.4),),
    )
]
FULL.others = [OtherTests("main", HOST, T0 + 34, 2.0, 50)]
FULL.findings = [Finding("llama3.2:1b was evicted.", "Raise OLLAMA_MAX_LOADED_MODELS.")]
FULL.lost = {"the server went away": ["test_a.py::test_3"]}
FULL.previous = {"llama3.2:1b": "cd" * 32}
FULL.unfinished = [Outcome("late:1", "late:1", "failed", host=HOST)]


# The record


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "found", [FULL, Record(), record()], ids=["full", "empty", "without-tests"]
)
def test_a_record_fits_the_schema_also_after_a_trip_through_a_file(
    found: Record, tmp_path: Path
) -> None:
    write(found.to_dict(), tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text("ascii"))
    jsonschema.validate(read, SCHEMA)
    assert read == found.to_dict()


def test_a_model_has_its_steps_in_the_order_of_time() -> None:
    one = FULL.to_dict()["models"][0]
    kinds = [(step["kind"], step["start"] - T0, step["size"]) for step in one["steps"]]
    assert [
        ("show", pytest.approx(0.9), 0),
        ("pull", 1, 1_300_000_000),
        ("verify", 24, 0),
        ("load", 25, 0),
        ("reload", 29.5, 0),
    ] == kinds
    assert ("test_a.py::test_2", "main") == (one["steps"][-1]["test"], one["steps"][-1]["by"])


def test_a_model_has_its_memory_and_who_set_its_options() -> None:
    one = document(model(learned=0))["models"][0]
    assert (1_500_000_000, 1_000_000_000) == (one["memory"], one["vram"])
    assert ({"num_ctx": 4096}, {"num_ctx": "--ollama-preload"}) == (
        one["options"],
        one["option_sources"],
    )
    learned = document(model(options=(), learned=8192))["models"][0]
    assert ({"num_ctx": 8192}, {"num_ctx": "learned in an earlier run"}) == (
        learned["options"],
        learned["option_sources"],
    )


def test_a_failed_pull_and_an_unfinished_model_say_so() -> None:
    ready, bad, late = FULL.to_dict()["models"]
    assert [False] * 5 == [step["failed"] for step in ready["steps"]]
    assert [("pull", True)] == [(step["kind"], step["failed"]) for step in bad["steps"]]
    assert ("late:1", "unfinished") == (late["model"], late["status"])
    assert "cd" * 32 == ready["previous_digest"]


def test_a_worker_has_its_tests_and_a_crashed_test_no_end() -> None:
    found = FULL.to_dict()
    (worker,) = found["workers"]
    assert ("main", HOST, 3) == (worker["worker"], worker["host"], worker["tests"])
    assert [50] == [span["number"] for span in worker["other_tests"]]
    assert (None, "") == (found["tests"][2]["seconds"], found["tests"][2]["outcome"])
    assert ["llama3.2:1b,num_ctx=4096"] == found["tests"][1]["cold"]


# Figures and lanes


def test_the_figures_of_a_run() -> None:
    shown = {one.name: (one.value, one.more) for one in figures(FULL.to_dict())}
    assert {
        "Waited for models": ("26.5 s", "before the first test"),
        "Loads": ("1", "in 2 s"),
        # The pull that failed is none of them.
        "Pulled": ("1.3 GB", "in 24 s"),
        "Tests served": ("3", "of 53 tests"),
        "Lost to reloads": ("1.4 s", "1 reload, 1 test met a cold model"),
        "Tests that waited": ("1", "longest 1.5 s, before their own time began"),
    } == shown


@pytest.mark.parametrize(
    ("steps", "number", "value", "more"),
    [
        ((Step("load", T0, 2.5),), 3, "≈ 7.5 s", "3 reloads by tests"),
        ((Step("load", T0, 2.5),), 0, "0 s", "no model was loaded again"),
        # Nobody has seen how long it takes.
        ((), 1, "unknown", "1 reload by tests"),
    ],
)
def test_what_tests_lose_by_another_context_is_counted(
    steps: tuple[Step, ...], number: int, value: str, more: str
) -> None:
    found = record(model(steps=steps))
    found.switches = {(found.outcomes[0].key, found.outcomes[0].host): number}
    shown = {one.name: (one.value, one.more) for one in figures(found.to_dict())}
    assert (value, more) == shown["Lost to reloads"]


def test_reloads_by_tests_of_one_model_on_two_hosts_add_up() -> None:
    outcomes = [model()._replace(key=host, host=f"http://{host}") for host in ("a:1", "b:1")]
    found = record(*outcomes)
    found.switches = {(outcome.key, outcome.host): 1 for outcome in outcomes}
    shown = {one.name: (one.value, one.more) for one in figures(found.to_dict())}
    assert ("≈ 4 s", "2 reloads by tests") == shown["Lost to reloads"]


def test_tests_that_were_skipped_were_not_served() -> None:
    tests = (ran("a", 30), ran("b", 31, 0.0, outcome="skipped"))
    shown = {one.name: (one.value, one.more) for one in figures(document(model(), tests=tests))}
    assert ("1", "of 2 tests") == shown["Tests served"]


def test_tests_whose_model_was_not_ready_were_not_served_and_failed_ones_are_counted() -> None:
    tests = (ran("a", 30, keys=("phi9",), outcome="failed"), ran("b", 31, outcome="failed"))
    found = document(model(), failed("phi9"), tests=(*tests, ran("c", 32)))
    shown = {one.name: (one.value, one.more) for one in figures(found)}
    assert ("2", "of 3 tests, 1 failed") == shown["Tests served"]
    # It is ready at another host, where that test did not run.
    elsewhere = failed("phi9")._replace(host="http://b:1")
    found = document(model(), model("phi9"), elsewhere, tests=tests)
    shown = {one.name: (one.value, one.more) for one in figures(found)}
    assert ("2", "all tests, 2 failed") == shown["Tests served"]


def test_a_wide_bar_shows_the_name_of_its_test() -> None:
    tests = (ran("test_a.py::test_long[<b>]", 30, 20.0), ran("test_a.py::test_brief", 51, 0.5))
    text = page(document(model(), tests=tests))
    assert ["test_long[&lt;b&gt;]"] == re.findall(r'data-n="([^"]*)"', text)


def test_a_chart_shortens_the_name_of_a_test_and_not_how_long_it_took() -> None:
    found = markdown(document(model(), tests=(ran(f"test_a.py::test_{'long_' * 20}end", 30, 3.2),)))
    (bar,) = (line for line in found.splitlines() if "test_a.py" in line)
    assert re.fullmatch(r" +test_a[.]py\S+[.][.]\S+_end passed in 3[.]2 s :\S+, \d+, \d+", bar), bar


def test_what_failed_is_the_first_thing_to_change() -> None:
    text = Elements(page(document(failed("m", "m: no such model.\nCheck name and tag.")))).words
    assert text.index("What to change") < text.index("→ Check name and tag.")


def test_a_model_that_was_loaded_before_is_no_load() -> None:
    found = document(model(found_loaded=True, steps=(Step("load", T0, 0.01),)))
    shown = {one.name: (one.value, one.more) for one in figures(found)}
    assert ("0", "nothing to load") == shown["Loads"]
    assert "1 model was ready from the start." == headline(found)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Record(), "This run used no model."),
        (record(), "1 model was ready after 26 s."),
        (
            record(model(), model("b:1"), tests=(ran("t", 30),)),
            "2 models were ready after 26 s, and served 1 test.",
        ),
        (
            record(model(), tests=(ran("t", 30), ran("u", 31)._replace(outcome="skipped"))),
            "1 model was ready after 26 s, and served 1 test.",
        ),
        (FULL, "1 of 3 models could not be made ready."),
    ],
    ids=["nothing", "one", "two", "a skipped test", "failed"],
)
def test_the_headline(found: Record, said: str) -> None:
    assert said == headline(found.to_dict())


def test_the_headline_of_a_run_that_ended_early_or_met_no_server() -> None:
    cut, off = Record(), Record()
    cut.unfinished = [model()]
    assert "The run ended before 1 of 1 model was ready." == headline(cut.to_dict())
    off.server = Outcome("server", "", "failed", error="no Ollama", host=HOST)
    assert "Ollama did not answer." == headline(off.to_dict())


def test_the_line_below_it() -> None:
    assert (
        "2023-11-14 22:13 UTC · Ollama 0.33.0 at http://127.0.0.1:11434 · "
        "pytest-ollama-warmup 0.1.0 · took 60 s · exit code 0"
    ) == subtitle(FULL.to_dict())


def test_a_lane_for_each_model_and_worker() -> None:
    lanes = timeline(FULL.to_dict())
    assert [
        ("llama3.2:1b,num_ctx=4096", ["pull", "verify", "load", "reload"]),
        ("phi9", ["failed"]),
        ("tests", ["wait", "tests", "tests", "failed", "others"]),
    ] == [(lane.name, sorted_kinds(lane.bars)) for lane in lanes.lanes]
    assert pytest.approx(35.0) == lanes.seconds
    assert pytest.approx(28.5) == lanes.first_test
    words = {bar.kind: bar.words for lane in lanes.lanes for bar in lane.bars}
    assert "pulled 1.3 GB in 24 s" == words["pull"]
    assert ["pull failed after 0.5 s"] == [bar.words for bar in lanes.lanes[1].bars]
    assert "reloaded in 1.4 s before test_a.py::test_2" == words["reload"]
    assert "test_a.py::test_2 waited 1.5 s for its models" == words["wait"]
    assert "test_a.py::test_3 did not end" == words["failed"]
    assert "50 tests without a model, 2 s" == words["others"]


def sorted_kinds(bars: list[Bar]) -> list[str]:
    order = ["pull", "verify", "load", "reload", "wait", "tests", "failed", "others"]
    return sorted((bar.kind for bar in bars), key=order.index)


def test_servers_of_a_pool_tell_their_models_apart() -> None:
    found = record(model(), model()._replace(key="b", host="http://gpu2:11434")).to_dict()
    assert [
        "llama3.2:1b,num_ctx=4096 at 127.0.0.1:11434",
        "llama3.2:1b,num_ctx=4096 at gpu2:11434",
    ] == [lane.name for lane in timeline(found).lanes]
    assert [HOST, "http://gpu2:11434"] == [one.host for one in rows(found)]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0.0, [0.0]),
        (4.4, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (100_000.0, [0.0, 14400.0, 28800.0, 43200.0, 57600.0, 72000.0, 86400.0]),
    ],
)
def test_the_axis_has_round_times(total: float, expected: list[float]) -> None:
    assert expected == ticks(total)


@pytest.mark.parametrize("workers", [1, 16])
def test_ten_thousand_tests_make_a_page_of_less_than_two_megabytes(workers: int) -> None:
    tests = tuple(
        ran(
            f"tests/test_{i % 300}.py::TestSomething::test_with_a_long_name[{i}]",
            30 + (i // workers) * 0.05,
            0.04,
            by=f"gw{i % workers}",
            waited_s=0.06 * (i % 3 == 0),
        )
        for i in range(10_000)
    )
    found = record(tests=tests).to_dict()
    assert 10_000 == len(found["tests"])
    assert len(page(found).encode()) < 2_000_000
    # GitHub draws no chart that is larger.
    assert len(markdown(found)) < 50_000
    total = sum(
        bar.number for lane in timeline(found).lanes for bar in lane.bars if bar.kind == "tests"
    )
    assert 10_000 == total


# Text from outside

EVIL = {
    "html": '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;',
    "markdown": "[click](http://evil.example) **b** `code` | cell\n# head\n<b>x</b> ![i](http://e/x.png) @all $x$ :boom:",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07 \x9b2J",
    "long": "x" * 10_000,
    "rtl": "abc \u202e\u2066 שלום \u2069 مرحبا",
    "mermaid": 'a:b; click x href "javascript:alert(1)"\n%%{init}%% section y #59;',
    "github": "50%\r\n::error::hidden%0A",
}


def poisoned(text: str) -> dict[str, Any]:
    """Return a document in which *text* stands wherever text from outside can."""
    found = record(
        model(text, notes=(text,), origin=text, left_out=text, capabilities=(text,)),
        failed(f"{text}2", text),
        tests=(ran(text, 30, waited_s=2.0, cold=(text,), outcome="failed", by=text),),
    )
    found.server = Outcome("server", "", "ready", notes=(text,), host=text)
    found.servers = [Outcome("server", "", "failed", error=text, host=f"{text}3")]
    found.findings = [Finding(text, text)]
    found.lost = {text: [text]}
    found.previous = {text: text}
    found.unfinished = [Outcome(text, text, "failed", brief=text, origin=text)]
    found.known = [Known(text, text, host=HOST, reloads=(Reload(text, text, T0, 0.0, 1.0),))]
    found.others = [OtherTests(text, text, T0 + 40, 1.0, 3)]
    settings = (("pull", text, text),)
    found.run = RunInfo(T0, T0 + 60, 1, text, text, text, settings, (("pull", text),))
    data = found.to_dict()
    jsonschema.validate(data, SCHEMA)
    return data


def test_settings_are_written_as_users_do() -> None:
    run = record(model("m"))
    values = {"load_timeout": 900.0, "background": False, "max_parallel": None, "workers": 2}
    run.run = RunInfo(
        T0, T0 + 60, 0, "9", "1", "3", tuple((name, value, "x") for name, value in values.items())
    )
    text = Elements(page(run.to_dict())).words
    assert "--ollama-load-timeout15 minx" in text
    assert "--ollama-backgroundnox" in text
    assert "--ollama-max-parallelnot setx" in text
    assert "--ollama-workers2x" in text


def test_the_slowest_tests_are_named() -> None:
    tests = [ran(f"test_it.py::test_{n}", n, float(n)) for n in range(9)]
    tests += [ran("test_it.py::test_waited", 90, 0.1, waited_s=2.0)]
    text = Elements(page(record(tests=tuple(tests)).to_dict())).words
    rows = text[text.index("or took longest") :]
    order = ["test_waited0.1 s2 s", *(f"test_{n}{n} s" for n in (8, 7, 6, 5, 4))]
    places = [rows.index(row) for row in order]
    assert sorted(places) == places
    assert "test_3" not in rows


class Elements(HTMLParser):
    """The elements of a page and their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("kind", EVIL)
def test_a_page_shows_any_text_harmlessly(kind: str) -> None:
    plain, found = Elements(page(FULL.to_dict())), page(poisoned(EVIL[kind]))
    shown = Elements(found)
    assert shown.names <= plain.names | {"small"}
    assert shown.attributes <= plain.attributes
    assert None is CONTROL.search(found)
    assert len(found) < 100_000
    # It is not in the only script either, which is a file of ours.
    assert 1 == found.count("<script")


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("render", [markdown, step_summary])
def test_markdown_shows_any_text_harmlessly(
    kind: str, render: Callable[[dict[str, Any]], str]
) -> None:
    found = render(poisoned(EVIL[kind]))
    assert None is CONTROL.search(found)
    assert len(found) < 40_000
    text, _, chart = found.partition("```mermaid\n")
    # What is not code holds nothing but our own marks.
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"<(?!br>)|\]\(|!\[|(?<!\*)\*(?!\*)|\$|@|:boom:", outside), outside
    assert set(re.findall(r"^#+ .*", text, re.MULTILINE)) <= {
        f"{level} {title}"
        for level in ("#", "##", "###")
        for title in ("Ollama models", "Findings", "Timeline")
    }
    assert {line.count("|") for line in outside.splitlines()} <= {0, 4, 6, 7}
    for line in chart.rstrip("`\n").splitlines():
        assert re.fullmatch(r"gantt| {4}(dateFormat x|axisFormat \S+|section .+|.+ :.+)", line), (
            line
        )
        words = line.removeprefix("    section ").rpartition(" :")[0]
        assert re.fullmatch(r"(?:[\w .,()/+=\[\]-]|#58;)*", words), line


@pytest.mark.parametrize("kind", EVIL)
def test_json_is_ascii_and_an_annotation_one_command(kind: str) -> None:
    data = poisoned(EVIL[kind])
    assert as_json(data).isascii()
    assert None is CONTROL.search(as_json(data))
    assert data == json.loads(as_json(data))
    lines = list(commands(data))
    assert 4 == len(lines)
    for line in lines:
        assert re.fullmatch(r"::(error|warning|notice) title=[\w ]+::[^\r\n]*", line), line
        assert None is CONTROL.search(line)
        assert len(line) < 3000


def test_markdown_code_that_code_cannot_hold_is_escaped() -> None:
    assert ("`llama3.2:1b`", "a&#96;b", "a&#124;b") == (
        code("llama3.2:1b"),
        code("a`b"),
        code("a|b"),
    )
    assert "&#42;&#42;b&#42;&#42; at http://x:80" == escaped("**b** at http://x:80")


# GitHub


def test_a_failed_model_is_an_error_unless_the_run_went_well_without() -> None:
    found = FULL.to_dict()
    said = [
        "title=Ollama model not ready::no such model Check the name.",
        "title=Ollama model lost::the server went away",
        "title=Ollama models::llama3.2:1b was evicted. Raise OLLAMA_MAX_LOADED_MODELS.",
        "title=Ollama model changed::llama3.2:1b,num_ctx=4096 changed since the last run: "
        f"{'cd' * 6} → {'ab' * 6}",
    ]
    levels = ["warning", "warning", "warning", "notice"]
    assert [f"::{one} {text}" for one, text in zip(levels, said, strict=True)] == list(
        commands(found)
    )
    assert next(commands({**found, "exit_status": 1})).startswith("::error ")
    assert next(commands({**found, "exit_status": None})).startswith("::error ")


# Files


def test_a_page_without_jinja2_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "" == missing_for(Path("a.html"))
    monkeypatch.setattr(files_module, "find_spec", lambda name: None)
    assert "pip install 'pytest-ollama-warmup[html]'" in missing_for(Path("a.HTML"))
    assert ["", ""] == [missing_for(Path(name)) for name in ("a.json", "a.md")]


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "r.md"
    write(FULL.to_dict(), path)
    before = path.read_text("utf-8")
    monkeypatch.setattr(files_module, "markdown", lambda document: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(FULL.to_dict(), path)
    assert ([path], before) == (list(path.parent.iterdir()), path.read_text("utf-8"))
