"""Reports of real runs: what is in them, however the run ends, and what is refused before it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import jsonschema
import pytest

import pytest_ollama_warmup.report.files as files_module
from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, ONE_TEST
from tests.test_faults import end, until, wait_for

if TYPE_CHECKING:
    from tests.conftest import Suite

THERE = replace(LLAMA, present=True)
WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
JSON = "--ollama-report=r.json"
TESTS = {
    "test_it.py": """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b", options={"num_ctx": 2048})
        @pytest.mark.parametrize("n", range(3))
        def test_model(n): assert n != 1

        @pytest.mark.requires_model("llama3.2:1b", options={"num_ctx": 2048})
        def test_skips(): pytest.skip("not today")

        @pytest.mark.parametrize("n", range(4))
        def test_other(n): pass
    """
}
MARKED = "import pytest\n\n@pytest.mark.requires_model('phi9')\ndef test_it(): pass\n"
SCHEMA = json.loads(Path(files_module.__file__).with_name("record.schema.json").read_text("utf-8"))


def record_of(suite: Suite, name: str = "r.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((suite.pytester.path / name).read_text("utf-8"))
    jsonschema.validate(found, SCHEMA)
    return found


def outcomes(record: dict[str, Any]) -> dict[str, str]:
    return {one["test"].partition("::")[2]: one["outcome"] for one in record["tests"]}


# What is in it


@pytest.mark.parametrize(
    ("ci", "pull", "on_unavailable"),
    [
        ("", "missing models that the command line or the environment lists", "skip (CI not set)"),
        ("yes", "missing", "fail (CI is set)"),
    ],
    ids=["home", "ci"],
)
def test_it_says_what_auto_stands_for(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, ci: str, pull: str, on_unavailable: str
) -> None:
    monkeypatch.setenv("CI", ci)
    suite.write(ONE_TEST)
    suite.run("--ollama-report=r.json", "--ollama-report=r.html")
    found = record_of(suite)["settings"]
    assert {"pull": pull, "on_unavailable": on_unavailable, "warm": "", "host": ""} == {
        name: found[name]["means"] for name in ("pull", "on_unavailable", "warm", "host")
    }
    shown = (suite.pytester.path / "r.html").read_text("utf-8")
    assert f"<bdi>auto: {on_unavailable}</bdi>" in shown
    # What is given says it by itself.
    suite.run("--ollama-report=r.json", "--ollama-on-unavailable=fail")
    assert "" == record_of(suite)["settings"]["on_unavailable"]["means"]


@WORKERS
def test_a_run_in_all_three_forms(suite: Suite, workers: list[str]) -> None:
    suite.write(TESTS)
    names = ["r.json", "sub/r.md", "r.html"]
    run = suite.run(
        "--ollama-pull=missing", *(f"--ollama-report={name}" for name in names), *workers
    )
    assert f"ollama: report written to {', '.join(names)}" in run.out
    record = record_of(suite)
    assert (suite.ollama.url, "0.33.0", 1) == (
        record["host"],
        record["version"],
        record["exit_status"],
    )
    assert record["started"] < record["prepared"] < record["ended"]
    (model,) = record["models"]
    assert ("llama3.2:1b,num_ctx=2048", "ready", 1_300_000) == (
        model["title"],
        model["status"],
        model["size"],
    )
    assert ({"num_ctx": 2048}, {"num_ctx": "the mark of a test"}) == (
        model["options"],
        model["option_sources"],
    )
    assert (1_300_000, ["completion"]) == (model["memory"], model["capabilities"])
    assert ["show", "pull", "verify", "show", "load"] == [one["kind"] for one in model["steps"]]
    assert [1_300_000] == [one["size"] for one in model["steps"] if one["size"]]
    assert {
        "test_model[0]": "passed",
        "test_model[1]": "failed",
        "test_model[2]": "passed",
        "test_skips": "skipped",
    } == outcomes(record)
    assert all(["llama3.2:1b,num_ctx=2048"] == one["models"] for one in record["tests"])
    assert all(0 <= one["seconds"] < 60 and [] == one["cold"] for one in record["tests"])
    processes = {one["worker"] for one in record["workers"]}
    assert ({"gw0", "gw1"} if workers else {"main"}) == processes
    assert 4 == sum(one["tests"] for one in record["workers"])
    spans = [span for one in record["workers"] for span in one["other_tests"]]
    assert 4 == sum(one["number"] for one in spans)
    markdown = (suite.pytester.path / "sub" / "r.md").read_text("utf-8")
    assert "**1 model was ready after " in markdown
    assert "`llama3.2:1b,num_ctx=2048`" in markdown
    page = (suite.pytester.path / "r.html").read_text("utf-8")
    assert "<h1>1 model was ready after " in page
    # Nothing half-written lies beside them.
    assert {"r.json", "r.html"} == {path.name for path in suite.pytester.path.glob("*r.*")}


def test_a_run_that_needs_no_model_says_so(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    run = suite.run(JSON, "--ollama-report=r.md")
    assert ({"passed": 1}, []) == (run.counts, suite.ollama.requests)
    assert [] == record_of(suite)["models"]
    assert "**This run used no model.**" in (suite.pytester.path / "r.md").read_text("utf-8")


@WORKERS
def test_a_suite_that_marks_nothing_has_its_tests_all_the_same(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": "import pytest\n\n@pytest.mark.parametrize('n', range(9))\ndef test_it(n): pass\n"
        }
    )
    suite.run(JSON, "--ollama-preload=llama3.2:1b", *workers)
    record = record_of(suite)
    spans = [span for one in record["workers"] for span in one["other_tests"]]
    assert (9, []) == (sum(one["number"] for one in spans), record["tests"])


def test_a_test_that_waits_for_its_turn_has_waited(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import time, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(2))
                def test_it(n): time.sleep(0.3)
            """
        }
    )
    suite.run(JSON, "--ollama-max-parallel=1", "-n2")
    first, second = record_of(suite)["tests"]
    assert second["start"] >= first["start"] + first["seconds"] - 0.05
    assert second["waited_s"] > 0.1
    assert second["seconds"] < second["waited_s"] + 0.3


def test_a_test_that_is_run_again_is_one_test_with_its_last_outcome(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import pathlib, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it():
                    first = not pathlib.Path("ran").exists()
                    pathlib.Path("ran").touch()
                    assert not first
            """
        }
    )
    suite.run(JSON, "-p", "pytest_rerunfailures", "--reruns=1")
    (one,) = record_of(suite)["tests"]
    assert ("passed", 0.0) == (one["outcome"], round(one["waited_s"] // 10))
    assert one["seconds"] > 0


@WORKERS
def test_a_model_that_a_test_unloads_is_cold_for_the_next(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import json, os, urllib.request, pytest
                pytestmark = pytest.mark.requires_model("llama3.2:1b")

                def test_unloads():
                    body = json.dumps({"model": "llama3.2:1b", "keep_alive": 0}).encode()
                    urllib.request.urlopen(os.environ["OLLAMA_HOST"] + "/api/generate", body).read()

                def test_next(): pass
            """
        }
    )
    suite.run(JSON, *(["-n1"] if workers else []))
    record = record_of(suite)
    assert [[], ["llama3.2:1b"]] == [one["cold"] for one in record["tests"]]
    (reload,) = [one for one in record["models"][0]["steps"] if one["kind"] == "reload"]
    assert "test_it.py::test_next" == reload["test"]
    (finding,) = record["findings"]
    assert "loaded again before test_it.py::test_next" in finding["text"]


def test_a_digest_that_changed_is_in_it(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(ollama_model): pass\n"})
    for digest in ("ab" * 32, "cd" * 32):
        suite.ollama.add(replace(THERE, digest=digest))
        suite.run(JSON, "--ollama-report=r.md", "--ollama-preload=llama3.2:1b")
    (model,) = record_of(suite)["models"]
    assert ("ab" * 32, "cd" * 32) == (model["previous_digest"], model["digest"])
    markdown = (suite.pytester.path / "r.md").read_text("utf-8")
    assert f"changed since the last run: `{'ab' * 6}` → `{'cd' * 6}`" in markdown


def test_several_servers_have_their_models_and_workers(suite: Suite) -> None:
    from pytest_ollama_warmup.emulator import Emulator

    suite.write(
        {
            "test_it.py": """
                import time, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(8))
                def test_it(n): time.sleep(0.1)
            """
        }
    )
    with Emulator([THERE]) as other:
        suite.ollama.add(THERE)
        suite.run(JSON, f"--ollama-host={suite.ollama.url},{other.url}", "-n2")
        urls = {suite.ollama.url, other.url}
    record = record_of(suite)
    assert urls == {one["host"] for one in record["servers"]}
    assert urls == {one["host"] for one in record["models"]}
    assert urls == {one["host"] for one in record["workers"]}
    assert 8 == len(record["tests"])


# However the run ends


def test_a_worker_that_crashes_leaves_its_test_without_an_end(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import os, pytest
                pytestmark = pytest.mark.requires_model("llama3.2:1b")

                def test_first(): pass
                def test_crashes(): os._exit(1)
                def test_last(): pass
            """
        }
    )
    suite.run(JSON, "-n1")
    record = record_of(suite)
    assert {"test_first": "passed", "test_crashes": "", "test_last": "passed"} == outcomes(record)
    assert [0, None, 1] == [
        one["seconds"] if one["seconds"] is None else index // 2
        for index, one in enumerate(record["tests"])
    ]
    assert ["gw0", "gw1"] == [one["worker"] for one in record["workers"]]


@WORKERS
def test_a_run_that_stops_at_its_first_failure_is_complete(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_fails(): assert False
            """
        }
    )
    run = suite.run(JSON, "-x", *workers)
    record = record_of(suite)
    assert (run.ret, ["ready"]) == (
        record["exit_status"],
        [one["status"] for one in record["models"]],
    )
    assert {"test_fails": "failed"} == outcomes(record)


def test_ctrl_c_in_a_test_leaves_a_report(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_it.py": """
                import pathlib, time, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it():
                    pathlib.Path("begun").touch()
                    time.sleep(60)
            """
        }
    )
    process = suite.start(JSON, "-s")
    until((suite.pytester.path / "begun").exists)
    process.send_signal(signal.SIGINT)
    assert 2 == end(process)[0]
    record = record_of(suite)
    assert (2, ["ready"]) == (
        record["exit_status"],
        [one["status"] for one in record["models"]],
    )
    assert ["test_it.py::test_it"] == [one["test"] for one in record["tests"]]


@pytest.mark.parametrize("listed", [["--ollama-preload=slow:1"], []], ids=["start", "later"])
def test_ctrl_c_in_a_pull_leaves_a_report_of_what_was_not_finished(
    suite: Suite, listed: list[str]
) -> None:
    suite.ollama.add(ScriptedModel("slow:1", size=10_000_000, pull_rate=1_000))
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("slow:1")
                def test_it(): pass
            """
        }
    )
    process = suite.start(JSON, "--ollama-pull=missing", "-s", *listed)
    wait_for(process, "slow:1 pulling")
    process.send_signal(signal.SIGINT)
    assert 2 == end(process)[0]
    record = record_of(suite)
    (model,) = record["models"]
    assert ("slow:1", "unfinished", suite.ollama.url) == (
        model["model"],
        model["status"],
        model["host"],
    )
    assert ([], "0.33.0") == (record["tests"], record["version"])


@WORKERS
@pytest.mark.parametrize("listed", [True, False], ids=["at-start", "after-collection"])
def test_a_run_that_ends_before_its_first_test_leaves_a_report(
    suite: Suite, workers: list[str], listed: bool
) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": MARKED})
    args = ["--ollama-preload=phi9"] if listed else ["--ollama-on-unavailable=exit"]
    run = suite.run(JSON, "--ollama-report=r.html", *args, *workers)
    assert 2 == run.ret
    record = record_of(suite)
    (model,) = record["models"]
    assert ("phi9", "failed") == (model["model"], model["status"])
    assert (None if listed else 2) == record["exit_status"]
    assert "1 of 1 model could not be made ready." in (suite.pytester.path / "r.html").read_text(
        "utf-8"
    )
    assert 1 == run.out.count("report written to")


def test_a_server_that_does_not_answer_is_in_it(suite: Suite) -> None:
    suite.ollama.stop()
    suite.write({"test_it.py": MARKED})
    suite.run(JSON, "--ollama-wait=0.1")
    record = record_of(suite)
    assert [("failed", "")] == [(one["status"], one["version"]) for one in record["servers"]]
    assert "connection refused" in record["servers"][0]["error"]
    assert record["servers"][0]["steps"][0]["seconds"] > 0.05


def test_looking_and_a_run_without_the_plugin_leave_none(suite: Suite) -> None:
    suite.write(TESTS)
    suite.run(JSON, "--collect-only")
    suite.run(JSON, "--ollama-off")
    assert not (suite.pytester.path / "r.json").exists()


# Where it goes


def test_a_path_in_a_configuration_file_counts_from_there(suite: Suite) -> None:
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_report =\n  out/my report.md\n  r.json\n",
            "sub/test_it.py": "def test_it(): pass\n",
        }
    )
    os.chdir(suite.pytester.path / "sub")
    suite.pytester.chdir()
    suite.run("sub")
    assert (suite.pytester.path / "out" / "my report.md").exists()
    assert (suite.pytester.path / "r.json").exists()


def test_an_empty_path_clears_those_before_it(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    suite.run(JSON, "--ollama-report=", "--ollama-report=r.md")
    assert ["r.md"] == [path.name for path in suite.pytester.path.glob("r.*")]


@WORKERS
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "r.txt",
            "'r.txt' is not a valid --ollama-report. Expected a file name that ends in .html, .md, .json.",
        ),
        ("folder.md", "--ollama-report: cannot write .*folder.md: Is a directory"),
        ("file/r.md", "--ollama-report: cannot write .*file/r.md: (Not a directory|File exists)"),
        ("~nobody-here/r.md", "cannot write ~nobody-here/r.md: Could not determine home"),
        # Of 255 bytes at most, with what is written first beside it.
        (f"{250 * 'r'}.md", "--ollama-report: cannot write .*r.md: File name too long"),
        (f"{300 * 'r'}.md", "--ollama-report: cannot write .*r.md: File name too long"),
    ],
    ids=["suffix", "directory", "below-a-file", "nobody's", "long", "longer"],
)
def test_what_cannot_be_written_is_refused_before_the_run(
    suite: Suite, workers: list[str], path: str, said: str
) -> None:
    suite.write({"test_it.py": "def test_it(): print('ran')\n", "file": "x"})
    (suite.pytester.path / "folder.md").mkdir()
    run = suite.run(f"--ollama-report={path}", "-s", *workers)
    assert 4 == run.ret
    assert re.search(said, run.err, re.IGNORECASE), run.err
    assert "ran" not in run.out
    assert "INTERNALERROR" not in run.out + run.err
    assert ["folder.md"] == [path.name for path in suite.pytester.path.glob("*.md")]
    assert [] == [*suite.pytester.path.glob(".*.partial"), *suite.pytester.path.glob(".*.checked")]


def test_a_look_before_the_run_leaves_what_another_run_writes(tmp_path: Path) -> None:
    partial = tmp_path / ".r.md.partial"
    partial.touch()
    files_module.check(tmp_path / "r.md")
    assert [partial] == [*tmp_path.iterdir()]


def test_a_page_without_jinja2_is_refused_before_the_run(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": "def test_it(): print('ran')\n",
            "without_jinja2.py": "import sys; sys.modules['jinja2'] = None\n",
        }
    )
    run = suite.run("--ollama-report=r.html", "-p", "without_jinja2", "-s")
    assert 4 == run.ret
    said = (
        "ERROR: --ollama-report r.html: an HTML report needs jinja2. Install it with "
        "pip install 'pytest-ollama-warmup[html]', or write a .md or .json report."
    )
    assert said in run.err
    assert "ran" not in run.out
    assert {"passed": 1} == suite.run(JSON, "-p", "without_jinja2").counts


def test_a_report_that_cannot_be_written_any_more_fails_no_test(suite: Suite) -> None:
    suite.write(
        {"test_it.py": "import os\n\ndef test_it(): os.mkdir('r.md')\n"},
    )
    run = suite.run("--ollama-report=r.md", JSON)
    assert (0, {"passed": 1}) == (run.ret, run.counts)
    assert re.search(r"ollama: cannot write \S+r\.md: Is a directory", run.out)
    assert [] == record_of(suite)["models"]


# GitHub and JUnit


@WORKERS
def test_github_gets_a_summary_where_a_model_was_used(
    suite: Suite, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = suite.pytester.path / "summary.md"
    summary.write_text("before\n", "utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suite.write({"test_it.py": "def test_it(): pass\n"})
    suite.run(*workers)
    assert "before\n" == summary.read_text("utf-8")
    suite.write(TESTS)
    suite.run("--ollama-pull=missing", *workers)
    text = summary.read_text("utf-8")
    assert text.startswith("before\n## Ollama models\n\n**1 model was ready after ")
    assert "| ✅ | `llama3.2:1b,num_ctx=2048` | pulled 1.3 MB in " in text
    assert "```mermaid\ngantt\n" in text
    assert all(f"section {name}" in text for name in (["gw0", "gw1"] if workers else ["tests"]))


def test_a_run_inside_a_test_leaves_the_summary_alone(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = suite.pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    suite.ollama.add(THERE)
    command = [sys.executable, *suite.command("inner.py", "--ollama-report=inner.md")[1:]]
    suite.write(
        {
            "inner.py": MARKED.replace("phi9", "llama3.2:1b"),
            "test_it.py": f"""
                import subprocess, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it():
                    done = subprocess.run({command!r}, capture_output=True, text=True)
                    assert "1 passed" in done.stdout
                    assert "::" not in done.stdout
            """,
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=llama3.2:1b", "test_it.py").counts
    assert 1 == summary.read_text("utf-8").count("## Ollama models")
    assert (suite.pytester.path / "inner.md").exists()


@WORKERS
def test_github_gets_an_annotation_for_a_model_that_failed(
    suite: Suite, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write({"test_it.py": MARKED})
    assert not re.search("^::", suite.run(*workers).out, re.MULTILINE)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    skipped = suite.run(*workers).out.splitlines()
    assert [one for one in skipped if one.startswith("::warning title=Ollama model not ready::")]
    (line,) = [
        one
        for one in suite.run("--ollama-on-unavailable=fail", *workers).out.splitlines()
        if one.startswith("::")
    ]
    assert line.startswith("::error title=Ollama model not ready::phi9 is not pulled")


@WORKERS
def test_a_junit_file_has_the_versions_and_digests(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(replace(THERE, digest="ab" * 32))
    suite.write(TESTS)
    suite.run("--junit-xml=junit.xml", *workers)
    root = ElementTree.parse(suite.pytester.path / "junit.xml").getroot()
    found = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert {
        "ollama_version": "0.33.0",
        "ollama_model llama3.2:1b,num_ctx=2048": f"sha256:{'ab' * 32}",
    } == found
