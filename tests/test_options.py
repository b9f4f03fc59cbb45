"""Options, configuration keys and environment: who wins, who is named, what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from pytest_ollama_warmup.config.options import OPTIONS
from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, ONE_TEST, Suite

HEADER_TEST = {"test_plain.py": "def test_plain(): pass\n"}


def present(suite: Suite, *names: str) -> None:
    for name in names:
        suite.ollama.add(ScriptedModel(name, size=1000, present=True))


@pytest.mark.parametrize(
    ("files", "args"),
    [
        ({"pyproject.toml": '[tool.pytest]\nollama_preload = ["a:1", "b:1,num_ctx=2048"]\n'}, []),
        ({"pyproject.toml": '[tool.pytest.ini_options]\nollama_preload = ["a:1", "b:1,num_ctx=2048"]\n'}, []),
        ({"pyproject.toml": '[tool.pytest.ini_options]\nollama_preload = "a:1 b:1,num_ctx=2048"\n'}, []),
        ({"pytest.ini": "[pytest]\nollama_preload = a:1\n    b:1,num_ctx=2048\n"}, []),
        ({"pytest.ini": "[pytest]\nollama_preload = a:1, b:1, num_ctx=2048\n"}, []),
        ({}, ["-o", "ollama_preload=a:1 b:1,num_ctx=2048"]),
    ],
    ids=["native", "ini_options list", "ini_options text", "pytest.ini", "spaces", "-o"],
)  # fmt: skip
def test_every_kind_of_configuration_file_lists_models(
    suite: Suite, files: dict[str, str], args: list[str]
) -> None:
    if "[tool.pytest]" in files.get("pyproject.toml", "") and pytest.version_tuple < (9,):
        pytest.skip("pytest 8 ignores [tool.pytest]")
    present(suite, "a:1", "b:1")
    suite.write(
        {**files, "test_all.py": "def test_all(ollama_models): assert len(ollama_models) == 2\n"}
    )
    run = suite.run("-v", *args)
    assert {"passed": 1} == run.counts
    assert ["a:1", "b:1"] == sorted(name for name, _ in suite.ollama.loads)
    source = "-o ollama_preload" if args else f"ollama_preload in {next(iter(files))}"
    assert f"preload: a:1, b:1,num_ctx=2048 ({source})" in run.ours[0]


@pytest.mark.parametrize(
    ("option", "environ", "ini", "names", "source"),
    [
        (["--ollama-preload=o:1"], "e:1", "i:1", ["o:1"], "--ollama-preload"),
        (["--ollama-preload=o:1", "--ollama-preload=p:1 q:1"], "e:1", "i:1", ["o:1", "p:1", "q:1"], "--ollama-preload"),
        ([], "e:1", "i:1", ["e:1"], "OLLAMA_PRELOAD_MODELS"),
        ([], "", "i:1", ["i:1"], "ollama_preload in pytest.ini"),
        (["--ollama-preload="], "e:1", "i:1", [], ""),
        (["--ollama-preload=o:1", "--ollama-preload=", "--ollama-preload=p:1"], "", "", ["p:1"], "--ollama-preload"),
    ],
)  # fmt: skip
def test_the_command_line_wins_over_environment_over_file(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    option: list[str],
    environ: str,
    ini: str,
    names: list[str],
    source: str,
) -> None:
    present(suite, "o:1", "p:1", "q:1", "e:1", "i:1")
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", environ)
    suite.write(
        {
            "pytest.ini": f"[pytest]\nollama_preload = {ini}\n",
            "test_all.py": "def test_all(ollama_models): print('listed', *ollama_models)\n",
        }
    )
    run = suite.run("-rP", "-v", *option)
    assert {"passed": 1} == run.counts
    assert f"listed {' '.join(names)}".rstrip() in [line.rstrip() for line in run.out.splitlines()]
    assert names == sorted(name for name, _ in suite.ollama.loads)
    assert source in run.ours[0]


def test_an_empty_list_on_the_command_line_overrides_addopts(suite: Suite) -> None:
    present(suite, "a:1")
    suite.write({**HEADER_TEST, "pytest.ini": "[pytest]\naddopts = --ollama-preload=a:1\n"})
    assert 1 == len((suite.run(), suite.ollama.loads)[1])
    suite.ollama.forget()
    assert [] == (suite.run("--ollama-preload="), suite.ollama.requests)[1]


@pytest.mark.parametrize(
    ("args", "files", "message"),
    [
        (["--ollama-pull=soon"], {}, "'soon' is not a valid --ollama-pull. Valid values: auto, missing, always, never."),
        (["--ollama-on-unavailable=cry"], {}, "'cry' is not a valid --ollama-on-unavailable. Valid values: auto, exit, fail, skip."),
        (["--ollama-warm=hot"], {}, "'hot' is not a valid --ollama-warm. Valid values: auto, prompt, load, off."),
        (["--ollama-keep-order=file"], {}, "'file' is not a valid --ollama-keep-order. Valid values: auto, module, class, test."),
        (["--ollama-wait=long"], {}, "'long' is not a valid --ollama-wait. Expected a duration such as 30, 30s or 1h30m, at least 0 s."),
        (["--ollama-wait=-1"], {}, "'-1' is not a valid --ollama-wait."),
        (["--ollama-wait=inf"], {}, "'inf' is not a valid --ollama-wait."),
        (["--ollama-keep-alive=1d"], {}, "'1d' (from --ollama-keep-alive): expected a duration"),
        (["--ollama-keep-alive=0"], {}, "'0' (from --ollama-keep-alive): expected a duration"),
        (["--ollama-preload=num_ctx=1"], {}, "'num_ctx=1' (from --ollama-preload): no model before it"),
        (["--ollama-preload=a,num_ctx=1"], {}, "'num_ctx=1' (from --ollama-preload): expected a whole number of at least 16"),
        (["--ollama-preload=a,heat=1"], {}, "'heat=1' (from --ollama-preload): unknown key 'heat'; keys: num_ctx,"),
        (["--ollama-preload=a,num_ctx=512 a"], {}, "a is listed twice with different options"),
        ([], {"pytest.ini": "[pytest]\nollama_pull = soon\n"}, "'soon' is not a valid ollama_pull in pytest.ini. Valid values:"),
        ([], {"pytest.ini": "[pytest]\nollama_wait = long\n"}, "is not a valid ollama_wait in pytest.ini. Expected a duration such as 30, 30s or 1h30m"),
        ([], {"pytest.ini": "[pytest]\nollama_off = perhaps\n"}, "'perhaps' is not a valid ollama_off in pytest.ini. Expected true or false."),
        ([], {"pyproject.toml": "[tool.pytest]\nollama_keep_alive = 600\n"}, "is not a valid ollama_keep_alive in pyproject.toml. Expected a string; in TOML, quote it"),
        ([], {"pyproject.toml": '[tool.pytest]\nollama_preload = "a"\n'}, "is not a valid ollama_preload in pyproject.toml. Expected a list of strings"),
        ([], {"pyproject.toml": "[tool.pytest.ini_options]\nollama_preload = [5]\n"}, "'[5]' is not a valid ollama_preload in pyproject.toml. Expected a list of strings"),
        (["--ollama-preload=a,keep_alive=0"], {}, "'keep_alive=0' (from --ollama-preload): expected a duration"),
        (["-o", "ollama_load_timeout=never"], {}, "is not a valid -o ollama_load_timeout. Expected a duration such as 30, 30s or 1h30m"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_what_cannot_be_used_is_refused_by_name(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    files: dict[str, str],
    message: str,
    workers: list[str],
) -> None:
    if "[tool.pytest]" in files.get("pyproject.toml", "") and pytest.version_tuple < (9,):
        pytest.skip("pytest 8 ignores [tool.pytest]")
    # It would win over the file.
    monkeypatch.delenv("OLLAMA_HOST")
    suite.write({**HEADER_TEST, **files})
    run = suite.run(*args, *workers)
    assert 4 == run.ret
    assert message in run.err
    assert "hunter2" not in run.out + run.err
    assert "Traceback" not in run.out + run.err


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("requires_model('a', colour=1)", "requires_model has no argument colour. The mark is"),
        ("requires_model(7)", "model names must be strings, got 7"),
        ("requires_model('')", "a model name is empty"),
        ("requires_model(['a', 'b:1'])", 'each model is an argument of its own: requires_model("a", "b:1")'),
        ("requires_model('llama 3.2:1b')", "'3.2:1b' (from @pytest.mark.requires_model): a space separates models; llama3.2:1b is one"),
        ("requires_model('a', options={'temperature': 0})", "temperature does not decide how a model is loaded: send it with each request"),
        ("requires_model('a', capabilities=['completion', 'tool'])", "no model has the capability 'tool'; did you mean 'tools'?"),
        ("requires_model('a b c=1')", "unknown key 'c'"),
        ("requires_model('a', options=3)", "options must be a dict of runner options, got 3"),
        ("requires_model(options={'num_ctx': 512})", "it names none"),
        ("requires_model('a', options={'num_ctx': 1})", "expected a whole number of at least 16"),
        ("requires_model('a,num_ctx=512', options={'num_ctx': 1024})", "a,num_ctx=512 says otherwise"),
        ("requires_model('a', on_unavailable='cry')", "'cry' is not a valid on_unavailable; valid values: auto, exit, fail, skip"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_bad_mark_is_refused_by_name(
    suite: Suite, mark: str, message: str, workers: list[str]
) -> None:
    suite.write({"test_bad.py": f"import pytest\n@pytest.mark.{mark}\ndef test_bad(): pass\n"})
    run = suite.run(*workers)
    assert 4 == run.ret
    assert "test_bad.py::test_bad: " in run.err
    assert message in run.err
    assert (
        "The mark is requires_model(*specs, capabilities=(), options=None, on_unavailable=None). [bad-mark]"
        in run.err
    )
    assert "Traceback" not in run.out + run.err


def test_a_bad_address_in_the_environment_matters_only_when_a_model_is_wanted(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "localhost:port")
    suite.write(HEADER_TEST)
    assert {"passed": 1} == suite.run().counts
    suite.write(ONE_TEST)
    for args in ([], ["-n2"], ["--ollama-preload=llama3.2:1b"]):
        run = suite.run(*args)
        assert 4 == run.ret
        assert "'localhost:port' (from OLLAMA_HOST) is not an address" in run.err


@pytest.mark.parametrize(
    ("name", "value"), [("OLLAMA_PRELOAD_MODELS", "a!"), ("OLLAMA_HOST", "localhost:port")]
)
def test_bad_variables_do_not_matter_where_nothing_is_done(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    suite.write(ONE_TEST)
    for args in (["--ollama-off"], ["--collect-only"], ["--help"], ["--markers"], ["--fixtures"]):
        assert 0 == suite.run(*args).ret
    suite.write({"pytest.ini": "[pytest]\nollama_wait = long\nollama_preload = a=1\n"})
    assert {"passed": 1} == suite.run("--ollama-off").counts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alias", '["a=b", "b=c"]'),
        ("alias", '["a"]'),
        ("export", "[1]"),
        ("header", "[1]"),
        ("preload", "[1]"),
        ("report", "[1]"),
        ("report", '["r.txt"]'),
        ("wait", '"long"'),
    ],
)
def test_a_bad_value_in_a_file_does_not_matter_to_a_run_that_is_off(
    suite: Suite, name: str, value: str
) -> None:
    suite.write(
        {**ONE_TEST, "pyproject.toml": f"[tool.pytest.ini_options]\nollama_{name} = {value}\n"}
    )
    assert {"passed": 1} == suite.run("--ollama-off").counts
    run = suite.run()
    assert 4 == run.ret
    assert f"ollama_{name} in pyproject.toml" in run.err


def test_a_bad_list_in_the_environment_is_refused_in_every_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "a!")
    suite.write(HEADER_TEST)
    run = suite.run()
    assert 4 == run.ret
    assert "'a!' (from OLLAMA_PRELOAD_MODELS): '!' is not allowed in the model" in run.err


def test_help_can_be_read_in_an_ascii_locale(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite.run("--help").out.isascii()


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["single", "n1"])
def test_the_address_is_in_the_environment_before_conftests_are_imported(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://elsewhere:1")
    suite.write(
        {
            "conftest.py": "import os\nHOST = os.environ['OLLAMA_HOST']\n",
            "test_host.py": """
                import os, conftest

                def test_host(ollama_host, ollama_openai_base_url):
                    print("host", conftest.HOST, os.environ["OLLAMA_HOST"], ollama_openai_base_url)
            """,
        }
    )
    run = suite.run("--ollama-host=0.0.0.0:5000", "-rP", *workers)
    url = "http://127.0.0.1:5000"
    assert f"host 127.0.0.1:5000 127.0.0.1:5000 {url}/v1" in run.out


def test_what_a_conftest_sets_is_no_setting_of_the_run(suite: Suite) -> None:
    # Read before conftests are imported, or as if it had been.
    suite.write(ONE_TEST)
    suite.write({"conftest.py": "import os\nos.environ['CI'] = 'true'\n"})
    assert {"skipped": 1} == suite.run().counts
    assert {"skipped": 1} == suite.run("--ollama-wait=2").counts


@pytest.mark.parametrize(
    ("args", "file"),
    [
        (["--ollama-pull=soon"], ""),
        (["-o", "ollama_pull=soon"], ""),
        ([], "[pytest]\nollama_pull = soon\n"),
    ],
    ids=["option", "override", "file"],
)
def test_a_bad_value_ends_also_a_run_that_needs_no_model(
    suite: Suite, args: list[str], file: str
) -> None:
    suite.write({"test_a.py": "def test_a():\n    pass\n", "pytest.ini": file or "[pytest]\n"})
    run = suite.run(*args)
    assert 4 == run.ret
    assert "'soon' is not a valid" in run.err


def test_a_conftest_can_name_the_plugin(suite: Suite) -> None:
    suite.write(ONE_TEST)
    suite.write({"conftest.py": 'pytest_plugins = ["pytest_ollama_warmup.plugin"]\n'})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--ollama-pull=missing", "-p", "no:cacheprovider"],
        cwd=suite.pytester.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert [LLAMA.name] == suite.ollama.pulls


@pytest.mark.parametrize("before", ["http://before:1", None])
def test_the_address_in_the_environment_comes_back_after_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    import os

    if before is not None:
        monkeypatch.setenv("OLLAMA_HOST", before)
    pytester.makepyfile("import os\ndef test(): assert 'now:1' == os.environ['OLLAMA_HOST']")
    result = pytester.runpytest_inprocess("-p", "ollama_warmup", "--ollama-host=http://now:1")
    result.assert_outcomes(passed=1)
    assert before == os.environ.get("OLLAMA_HOST")


def test_an_address_that_nobody_set_stays_unset_in_a_run_that_uses_nothing_of_ours(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    suite.write({"test_host.py": "import os\ndef test(): assert 'OLLAMA_HOST' not in os.environ\n"})
    assert {"passed": 1} == suite.run().counts


def test_the_lease_is_asked_for_where_it_is_longer(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    suite.run("--ollama-keep-alive=30m")
    sent = [request.body.get("keep_alive") for request in suite.ollama.calls("generate")]
    assert [None, 1800] == sent
    suite.ollama.forget()
    suite.run("--ollama-keep-alive=20m")
    assert [] == suite.ollama.calls("generate")


@pytest.mark.parametrize(
    ("warm", "bodies"),
    [
        ("prompt", [{"prompt": "Hi", "options": {"num_predict": 5, "temperature": 0.1}}]),
        ("load", [{"prompt": ""}]),
        ("auto", [{"prompt": ""}]),
        ("off", []),
    ],
)
def test_how_models_are_warmed(suite: Suite, warm: str, bodies: list[dict[str, object]]) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    suite.run(f"--ollama-warm={warm}", "--ollama-keep-alive=1s")
    common = {"model": "llama3.2:1b", "stream": False}
    assert [common | body for body in bodies] == [
        one.body for one in suite.ollama.calls("generate")
    ]


def test_pull_always_refreshes_and_never_pulls_not(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(ONE_TEST)
    assert 1 == len((suite.run("--ollama-pull=always"), suite.ollama.pulls)[1])
    suite.ollama.forget()
    suite.run("--ollama-pull=never", "--ollama-preload=llama3.2:1b")
    assert [] == suite.ollama.pulls


def test_ci_allows_the_download_of_what_a_mark_wants(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write(ONE_TEST)
    assert [] == (suite.run(), suite.ollama.pulls)[1]
    monkeypatch.setenv("CI", "true")
    assert 1 == len((suite.run(), suite.ollama.pulls)[1])


def test_help_shows_every_option_in_its_group(suite: Suite) -> None:
    run = suite.run("--help")
    for option in OPTIONS:
        assert f"  {option.flag}" in run.out
        assert f"  {option.ini} (" in run.out
    for title in ("which models, and what if", "when and how models", "the server"):
        assert f"Ollama: {title}" in run.out


@pytest.mark.parametrize(
    ("variables", "args", "words"),
    [
        ({"BUILD_NUMBER": "7"}, [], "fail (BUILD_NUMBER is set)"),
        ({"TF_BUILD": "True"}, [], "fail (TF_BUILD is set)"),
        ({"TEAMCITY_VERSION": "2026.1"}, [], "fail (TEAMCITY_VERSION is set)"),
        ({"CODEBUILD_BUILD_ID": "p:1"}, [], "fail (CODEBUILD_BUILD_ID is set)"),
        ({"JENKINS_URL": "http://j"}, [], "fail (JENKINS_URL is set)"),
        ({"CI": "1", "BUILD_NUMBER": "7"}, [], "fail (CI is set)"),
        ({"CI": "false", "BUILD_NUMBER": ""}, [], "skip (CI not set)"),
        ({}, ["--ollama-ci=yes"], "fail (from --ollama-ci)"),
        ({}, ["-o", "ollama_ci=yes"], "fail (from -o ollama_ci)"),
        ({"CI": "1"}, ["--ollama-ci=no"], "skip (from --ollama-ci)"),
    ],
)
def test_what_counts_as_ci_decides_and_is_named(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    args: list[str],
    words: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    suite.write({"test_it.py": ONE_TEST["test_chat.py"].replace("llama3.2:1b", "nix:1")})
    run = suite.run("--ollama-pull=never", "-v", *args)
    assert {"error" if words.startswith("fail") else "skipped": 1} == run.counts
    assert run.ours[0].endswith(f"unavailable models: {words}")
    if words.startswith("fail"):
        way_out = words if args else words.replace(")", "; --ollama-ci=no skips it)")
        assert way_out.removeprefix("fail ") in run.ours[1]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ('"a:1 b:1"', ["a:1", "b:1"]),
        ("'a:1,num_ctx=512'", ["a:1"]),
        ('["a:1", "b:1"]', ["a:1", "b:1"]),
        ("'[\"a:1,num_ctx=512\"]'", ["a:1"]),
        ("[]", []),
    ],
)
def test_the_variable_may_be_as_an_env_file_or_json_leaves_it(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, value: str, names: list[str]
) -> None:
    present(suite, "a:1", "b:1")
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", value)
    suite.write({"test_it.py": "def test_it(): pass\n"})
    assert {"passed": 1} == suite.run().counts
    assert names == sorted(name for name, _ in suite.ollama.loads)


@pytest.mark.parametrize("value", ['["a:1"', "[5]", '[["a:1"]]'])
def test_a_list_in_the_variable_that_is_none_is_named(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", value)
    suite.write(ONE_TEST)
    run = suite.run()
    assert 4 == run.ret
    assert "is not a valid OLLAMA_PRELOAD_MODELS. Expected a list of strings" in run.err
