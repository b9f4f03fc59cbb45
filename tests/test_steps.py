"""The main job: once per run, before the first test, in a single process and under xdist."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, ONE_TEST, Suite, is_plain

if TYPE_CHECKING:
    from pytest_ollama_warmup.emulator import Emulator

PULL_AND_LOAD = ["show", "pull", "show", "ps", "generate", "ps", "generate"]
MANY_TESTS = {
    "test_many.py": """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("n", range(40))
        def test_one(n, request):
            assert request.config is not None
    """
}


def work_on(ollama: Emulator, model: str = "llama3.2:1b") -> list[str]:
    """Return the client's requests that were about *model*, with the looks at /api/ps."""
    verbs = [
        request.path.removeprefix("/api/")
        for request in ollama.requests
        if (request.model == model or request.path == "/api/ps") and not is_plain(request)
    ]
    # Each test is looked at too, when the last of them is over.
    while verbs[-1:] == ["ps"]:
        verbs.pop()
    return verbs


def test_a_listed_model_is_pulled_and_loaded_before_the_first_test(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload", "llama3.2:1b")
    assert {"passed": 1} == run.counts
    assert PULL_AND_LOAD == work_on(suite.ollama)


def test_a_marked_model_that_is_there_is_loaded_and_nothing_else(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    run = suite.run()
    assert {"passed": 1} == run.counts
    assert ["show", "ps", "generate", "ps", "generate"] == work_on(suite.ollama)


def test_the_model_is_warm_when_the_first_test_begins(suite: Suite) -> None:
    suite.write(
        {
            "test_warm.py": """
                import json, os, urllib.request, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_warm():
                    url = os.environ["OLLAMA_HOST"] + "/api/ps"
                    models = json.load(urllib.request.urlopen(url))["models"]
                    assert ["llama3.2:1b"] == [one["name"] for one in models]
            """
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=llama3.2:1b").counts


@pytest.mark.parametrize(
    "args",
    [
        ["-n2"],
        ["-n4"],
        ["-n2", "--dist=loadscope"],
        ["-n2", "--dist=worksteal"],
        ["--tx=2*popen", "--dist=each"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("preload", [["--ollama-preload=llama3.2:1b"], ["--ollama-pull=missing"]])
def test_workers_share_one_pull_and_one_load(
    suite: Suite, args: list[str], preload: list[str]
) -> None:
    suite.write(MANY_TESTS)
    run = suite.run(*args, *preload)
    assert {"passed": 80 if "--dist=each" in args else 40} == run.counts
    assert PULL_AND_LOAD == work_on(suite.ollama)


def test_thirty_two_workers_share_one_pull_and_one_load(suite: Suite) -> None:
    suite.write(MANY_TESTS)
    run = suite.run("-n32", "--ollama-preload=llama3.2:1b")
    assert {"passed": 40} == run.counts
    assert PULL_AND_LOAD == work_on(suite.ollama)


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_a_module_that_skips_at_import_without_its_model_runs(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "test_import.py": """
                import json, os, urllib.request, pytest

                url = os.environ["OLLAMA_HOST"] + "/api/tags"
                names = [one["name"] for one in json.load(urllib.request.urlopen(url))["models"]]
                if "llama3.2:1b" not in names:
                    pytest.skip("llama3.2:1b is not there", allow_module_level=True)

                def test_chat():
                    pass
            """
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=llama3.2:1b", *args).counts


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_a_conftest_that_aborts_at_session_start_without_its_model_runs(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "conftest.py": """
                import json, os, urllib.request, pytest

                @pytest.hookimpl(tryfirst=True)
                def pytest_sessionstart(session):
                    url = os.environ["OLLAMA_HOST"] + "/api/tags"
                    if not json.load(urllib.request.urlopen(url))["models"]:
                        pytest.exit("no model, no tests", returncode=3)
            """,
            "test_chat.py": "def test_chat(): pass\n",
        }
    )
    run = suite.run("--ollama-preload=llama3.2:1b", *args)
    assert {"passed": 1} == run.counts


@pytest.mark.parametrize("args", [[], ["-n1"]], ids=["single", "n1"])
def test_loading_goes_on_beside_collection(suite: Suite, args: list[str]) -> None:
    # The module waits at import until the server loads: were the load awaited before collection,
    # the model would be ready by then; were it begun after it, nothing would ever load.
    suite.ollama.add(replace(LLAMA, load_s=3.0, present=True))
    suite.write(
        {
            "test_beside.py": """
                import json, os, time, urllib.request

                def loaded_models():
                    url = os.environ["OLLAMA_HOST"] + "/api/ps"
                    return json.load(urllib.request.urlopen(url))["models"]

                AT_IMPORT = loaded_models()

                def test_model_was_not_ready_at_import_and_is_now():
                    assert [] == AT_IMPORT
                    assert 1 == len(loaded_models())
            """
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=llama3.2:1b", *args).counts
    assert 1 == len(suite.ollama.loads)


@pytest.mark.parametrize(
    "option",
    [
        "--collect-only",
        "--fixtures",
        "--fixtures-per-test",
        "--cache-show",
        "--setup-plan",
        "--setup-only",
        "--help",
        "--markers",
        "--version",
    ],
)
@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_looking_never_touches_the_network(suite: Suite, option: str, args: list[str]) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload=llama3.2:1b", option, *args)
    assert 0 == run.ret
    assert [] == suite.ollama.requests


def test_collect_only_says_that_nothing_is_prepared(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload=llama3.2:1b", "--collect-only")
    assert run.ours[0].endswith("; not preloading: no tests will run")


def test_a_replacement_for_a_crashed_worker_finds_the_record(suite: Suite) -> None:
    suite.write(
        {
            "test_crash.py": """
                import os, pathlib, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(6))
                def test_one(n):
                    if n == 1:
                        os._exit(1)
            """
        }
    )
    run = suite.run("-n2", "--ollama-preload=llama3.2:1b")
    assert {"passed": 5, "failed": 1} == run.counts
    assert "replacing crashed worker" in run.out
    assert PULL_AND_LOAD == work_on(suite.ollama)


def test_models_are_prepared_side_by_side_and_each_once(suite: Suite) -> None:
    names = ["a:1", "b:1", "c:1"]
    for name in names:
        suite.ollama.add(ScriptedModel(name, size=1000))
    suite.write({"test_it.py": "def test_it(): pass\n"})
    run = suite.run("--ollama-preload", " ".join(names))
    assert {"passed": 1} == run.counts
    assert [PULL_AND_LOAD.count("pull")] * 3 == [
        work_on(suite.ollama, n).count("pull") for n in names
    ]
    assert sorted(names) == sorted(name for name, _ in suite.ollama.loads)


def test_only_models_of_selected_tests_are_prepared(suite: Suite) -> None:
    for name in ("a:1", "b:1", "c:1", "d:1", "e:1"):
        suite.ollama.add(ScriptedModel(name, size=1000, present=True))
    suite.write(
        {
            "test_some.py": """
                import pytest

                @pytest.mark.requires_model("a:1")
                def test_selected(): pass

                @pytest.mark.requires_model("b:1")
                def test_deselected(): pass

                @pytest.mark.skip
                @pytest.mark.requires_model("c:1")
                def test_selected_and_skipped(): pass

                @pytest.mark.skipif(True, reason="always")
                @pytest.mark.requires_model("d:1")
                def test_selected_and_skipped_if(): pass

                @pytest.mark.xfail(run=False)
                @pytest.mark.requires_model("e:1")
                def test_selected_and_not_run(): pass
            """
        }
    )
    suite.run("-k", "test_selected")
    assert ["a:1"] == [name for name, _ in suite.ollama.loads]


def test_an_ini_list_is_prepared_when_a_selected_test_names_the_model(suite: Suite) -> None:
    for name in ("a:1", "b:1"):
        suite.ollama.add(ScriptedModel(name, size=1000, present=True))
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = a:1,num_ctx=2048 b:1\n",
            "test_one.py": """
                import pytest

                @pytest.mark.requires_model("a:1")
                def test_a(): pass

                def test_plain(): pass
            """,
        }
    )
    assert [] == (suite.run("-k", "plain"), suite.ollama.requests)[1]
    suite.run()
    assert [("a:1", 2048)] == [(name, options["num_ctx"]) for name, options in suite.ollama.loads]


def test_the_environment_lists_models_forevery_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "llama3.2:1b")
    suite.write({"test_plain.py": "def test_plain(): pass\n"})
    assert {"passed": 1} == suite.run().counts
    assert PULL_AND_LOAD == work_on(suite.ollama)


def test_a_run_inside_a_test_does_not_bring_what_the_environment_lists_again(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "llama3.2:1b")
    suite.write(
        {
            "test_outer.py": """
                import subprocess, sys

                def test_inner(tmp_path):
                    (tmp_path / "test_in.py").write_text("def test(): pass")
                    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", str(tmp_path)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    assert 0 == done.returncode
                    assert "ollama" not in done.stdout.replace("ollama-warmup", "")
            """
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert 1 == len(suite.ollama.pulls)


def test_nothing_is_prepared_after_collection_errors(suite: Suite) -> None:
    suite.write({**ONE_TEST, "test_bad.py": "raise RuntimeError\n"})
    run = suite.run()
    assert 2 == run.ret
    assert [] == suite.ollama.requests


def test_collection_errors_that_are_passed_over_do_not_stop_the_work(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write({**ONE_TEST, "test_bad.py": "raise RuntimeError\n"})
    run = suite.run("--continue-on-collection-errors")
    assert {"passed": 1, "error": 1} == run.counts
    assert 1 == len(suite.ollama.loads)


def test_off_does_nothing_and_keeps_the_mark(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-off", "--ollama-preload=llama3.2:1b", "--strict-markers")
    assert {"passed": 1} == run.counts
    assert [] == suite.ollama.requests
    assert [] == run.ours


def test_tests_that_need_no_model_cost_no_request_and_no_word(suite: Suite) -> None:
    suite.write({"test_plain.py": "def test_plain(ollama_host): assert ollama_host\n"})
    run = suite.run()
    assert {"passed": 1} == run.counts
    assert [] == suite.ollama.requests
    assert [] == run.ours + run.table
