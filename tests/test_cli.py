"""The same work without pytest: the command line, and ``preload()`` for scripts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_ollama_warmup
from pytest_ollama_warmup.cli import main as cli
from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.config.options import OPTIONS
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.errors import BadHost, BadSetting, BadSpec
from pytest_ollama_warmup.report.progress import Screen
from tests.command import Run, start
from tests.conftest import LLAMA, UserSuite
from tests.test_faults import BOUND_S, until
from tests.test_report import SCHEMA

NAME = "llama3.2:1b"
EMBED = ScriptedModel("embed:a", size=500_000, capabilities=("embedding",))


@pytest.fixture(autouse=True)
def _usual_server(ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.add(EMBED)
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)


# What the commands do


def test_preload_pulls_and_loads_what_is_named(ollama: Emulator) -> None:
    run = Run("preload", "llama3.2:1b,num_ctx=2048", "embed:a")
    assert (0, "") == (run.ret, run.err)
    assert [NAME, "embed:a"] == sorted(ollama.pulls, reverse=True)
    assert {NAME: 2048, "embed:a": 4096} == {
        load.model: load.options["num_ctx"] for load in ollama.loads
    }
    assert f"ollama: {ollama.url} (from OLLAMA_HOST)" == run.lines[0]
    assert "from the command line" not in run.out
    assert [NAME, "embed:a"] == [line.split(",")[0].split()[1] for line in run.lines[-2:]]
    assert all("   pulled" in line and line[0] == "✓" for line in run.lines[-2:])


def test_what_is_there_is_loaded_only(ollama: Emulator) -> None:
    ollama.add(replace(LLAMA, present=True))
    assert 0 == Run("preload", NAME, "--warm=load", "--keep-alive=30m").ret
    assert ([], 1) == (ollama.pulls, len(ollama.loads))
    (loading, keep_alive) = (one.body for one in ollama.calls("generate"))
    assert ("", 1800) == (loading["prompt"], keep_alive["keep_alive"])


def test_pull_downloads_only(ollama: Emulator) -> None:
    run = Run("pull", NAME)
    assert (0, [NAME], []) == (run.ret, ollama.pulls, ollama.loads)
    assert "load" not in run.out.replace("preload", "")


def test_one_that_fails_leaves_the_others_alone(ollama: Emulator) -> None:
    run = Run("preload", NAME, "phi9")
    assert 1 == run.ret
    assert "ollama: phi9 (from the command line): the registry has no such model" in run.out
    assert run.lines[-2].startswith("✓ llama3.2:1b   pulled")
    assert re.match(r"✗ phi9 +not in the registry$", run.lines[-1])


@pytest.mark.parametrize("command", ["preload", "pull", "unload", "cache-key"])
@pytest.mark.parametrize("variable", [None, " "])
def test_nothing_named_is_bad_usage_as_a_variable_may_be_unset(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch, command: str, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", variable)
    run = Run(command)
    assert (2, "", []) == (run.ret, run.out, ollama.requests)
    more = ", or use --all" if command == "unload" else ""
    assert (
        f"ollama-warmup {command}: error: no model named. "
        f"Name one or more, or list them in OLLAMA_PRELOAD_MODELS{more}.\n"
    ) == run.err


@pytest.mark.parametrize("command", ["preload", "pull"])
def test_a_server_that_starts_late_is_waited_for(ollama: Emulator, command: str) -> None:
    ollama.stop()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_ollama_warmup", command, NAME],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert any("waiting for http" in line for line in process.stdout)
    ollama.start()
    out, _ = process.communicate(timeout=BOUND_S)
    assert 0 == process.returncode
    assert "✓ llama3.2:1b   pulled" in out


# Where models are named


@pytest.mark.parametrize(
    ("command", "environ", "pulled"),
    [
        ("preload", {"OLLAMA_PRELOAD_MODELS": NAME, "OLLAMA_MODELS": "embed:a"}, [NAME]),
        ("preload", {"OLLAMA_MODELS": "embed:a, llama3.2:1b"}, ["embed:a", NAME]),
        ("preload", {"OLLAMA_PRELOAD_MODELS": NAME, "OLLAMA_MODELS": "/srv/models"}, [NAME]),
        ("pull", {"OLLAMA_PRELOAD_MODELS": NAME, "OLLAMA_MODELS": "embed:a"}, ["embed:a", NAME]),
        ("pull", {"OLLAMA_PRELOAD_MODELS": NAME, "OLLAMA_MODELS": "C:\\models"}, [NAME]),
        # As pytest reads them: quoted, as env files leave them, or a JSON list.
        ("preload", {"OLLAMA_PRELOAD_MODELS": f'"embed:a {NAME}"'}, ["embed:a", NAME]),
        (
            "pull",
            {"OLLAMA_PRELOAD_MODELS": f'["embed:a", "{NAME},num_ctx=512"]'},
            ["embed:a", NAME],
        ),
        ("pull", {"OLLAMA_PRELOAD_MODELS": NAME, "OLLAMA_MODELS": "'/srv/models'"}, [NAME]),
        # Of a model in both the first one counts.
        (
            "pull",
            {"OLLAMA_PRELOAD_MODELS": f"{NAME},num_ctx=512", "OLLAMA_MODELS": f"{NAME} embed:a"},
            ["embed:a", NAME],
        ),
    ],
)
def test_the_environment_names_models_where_the_command_line_does_not(
    ollama: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    environ: dict[str, str],
    pulled: list[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert 0 == main([command])
    assert pulled == sorted(ollama.pulls)


def test_what_the_environment_names_is_shown_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", f"embed:a {NAME}")
    assert 0 == main(["pull"])
    assert (
        f"ollama: pull embed:a {NAME} (from OLLAMA_PRELOAD_MODELS)"
        == capsys.readouterr().out.splitlines()[1]
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1, 2]", "'[1, 2]' is not a valid OLLAMA_MODELS. Expected a list of strings"),
        ("a,b=1", "'b=1' (from OLLAMA_MODELS): unknown key 'b'"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, said: str
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", NAME)
    monkeypatch.setenv("OLLAMA_MODELS", value)
    assert 2 == main(["pull"])
    assert said in capsys.readouterr().err


def test_a_variable_that_is_not_set_drops_no_model_beside_it(ollama: Emulator) -> None:
    assert 0 == main(["pull", NAME, "", "embed:a"])
    assert ["embed:a", NAME] == sorted(ollama.pulls)


@pytest.mark.parametrize("folder", ["/srv/models", "~/models", "C:\\models"])
def test_a_folder_is_no_list_of_models(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", folder)
    assert 2 == main(["preload"])
    assert [] == ollama.requests


def test_the_command_line_goes_before_the_environment(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi9")
    assert 0 == main(["pull", NAME])
    assert [NAME] == ollama.pulls


def test_a_role_can_be_named(ollama: Emulator) -> None:
    assert 0 == main(["pull", "chat", "--alias", "chat=llama3.2:1b"])
    assert [NAME] == ollama.pulls


# The same options


def test_every_option_that_makes_sense_here_has_both_forms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["preload", "--help"])
    assert 0 == caught.value.code
    text = capsys.readouterr().out
    for option in OPTIONS:
        short = f"--{option.name.replace('_', '-')} "
        assert option.pytest_only == (short not in text)
        assert option.pytest_only == (option.flag not in text)


COMMANDS = ("preload", "pull", "status", "unload", "cache-key", "demo")


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a terminal of 80 columns shows."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert 0 == caught.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(command, capsys)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    # These are about test runs, or about what a command refuses.
    for one in ("environment lists", "xdist", "URL[,", "SPEC", "in CI", "a test needs"):
        assert one not in words, one
    assert "Exit codes: 0 " in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_two_examples_that_can_be_read(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    *_, title, first, second = help_of(command, capsys).splitlines()
    assert "Examples:" == title
    assert first != second
    for example in (first, second):
        program, name, *rest = example.split()
        assert ("ollama-warmup", command) == (program, name)
        cli._parser().parse_args([name, *rest])


def test_a_row_has_a_text_for_commands_only_where_it_differs() -> None:
    for option in OPTIONS:
        assert option.command_help != option.help
        assert not option.command_metavar or option.command_metavar != option.metavar
        if option.pytest_only:
            assert "" == option.command_help == option.command_metavar


def test_both_forms_mean_the_same(ollama: Emulator) -> None:
    for flag in ("--host", "--ollama-host"):
        run = Run("pull", NAME, flag, ollama.url)
        assert (0, True) == (run.ret, f"{ollama.url} (from --host)" in run.out)


def test_always_refreshes(ollama: Emulator) -> None:
    ollama.add(replace(LLAMA, present=True))
    run = Run("pull", NAME, "--pull=always")
    assert (0, [NAME]) == (run.ret, ollama.pulls)
    assert "up to date" in run.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preload", "x,num_ctx=1"], "'num_ctx=1' (from the command line): expected a whole number of at least 16"),
        (["pull", "x", "--pull=soon"], "'soon' is not a valid --pull. Valid values: auto, missing, always, never."),
        (["preload", "x", "--host=h:abc"], "'h:abc' (from --host) is not an address of an Ollama server"),
        (["preload", "x", "--wait=soon"], "'soon' is not a valid --wait."),
        (["preload", "x", "--load-timeout=0"], "'0' is not a valid --load-timeout."),
        (["preload", "a", "a,num_ctx=64"], "a is listed twice with different options"),
        (["pull", "x", "--warm=load"], "unrecognized arguments: --warm=load"),
        (["preload", "x", "--on-unavailable=skip"], "unrecognized arguments: --on-unavailable=skip"),
        ([], "the following arguments are required: COMMAND"),
        (["warm"], "invalid choice: 'warm'"),
    ],
)  # fmt: skip
def test_bad_usage_is_told_without_a_traceback(
    ollama: Emulator, arguments: list[str], message: str
) -> None:
    run = Run(*arguments)
    assert (2, "") == (run.ret, run.out)
    assert message in run.err
    assert "Traceback" not in run.err
    assert [] == ollama.requests


def test_a_bad_variable_is_named(ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "ftp://x")
    run = Run("preload", NAME)
    assert (2, True) == (run.ret, "'ftp://x' (from OLLAMA_HOST)" in run.err)


# What it writes


def test_json_goes_to_stdout_and_progress_to_stderr(ollama: Emulator) -> None:
    run = Run("preload", NAME, "phi9", "--json")
    assert 1 == run.ret
    written: dict[str, Any] = json.loads(run.out)
    assert (1, ollama.url, "0.33.0") == (written["schema"], written["host"], written["version"])
    ready, failed = written["models"]
    assert (NAME, "ready", 1_300_000) == (ready["model"], ready["status"], ready["size"])
    jsonschema.validate(written, SCHEMA)
    kinds = [step["kind"] for step in ready["steps"]]
    assert ["show", "pull", "verify", "show", "load"] == kinds
    assert all(step["seconds"] >= 0 for step in ready["steps"])
    assert ("failed", True) == (failed["status"], "no such model" in failed["error"])
    assert "ollama: llama3.2:1b pulled" in run.err


def test_quiet_and_quieter(ollama: Emulator) -> None:
    quiet = Run("preload", NAME, "-q")
    assert "ollama: llama3.2:1b pulling 1.3 MB" == quiet.lines[0]
    assert quiet.lines[-1].startswith("✓ llama3.2:1b")
    assert (0, "") == ((very := Run("preload", NAME, "-qq")).ret, very.out)
    failed = Run("preload", "phi9", "-qq")
    error, cure, row = failed.lines
    assert error.startswith("ollama: phi9 (from the command line): the registry has no such model")
    assert cure.startswith("        → Check name and tag")
    assert "✗ phi9   not in the registry" == row


def test_an_output_without_signs_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert Run("preload", NAME).lines[-1].startswith("+ llama3.2:1b   pulled")


def test_ctrl_c_ends_a_pull_at_once_and_says_so(ollama: Emulator) -> None:
    ollama.add(replace(LLAMA, size=10**9, pull_rate=10**6))
    process = start("pull", NAME)
    until(lambda: ollama.pulling)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=BOUND_S)
    assert (130, "") == (process.returncode, err)
    assert "interrupted: llama3.2:1b pulling. A pull goes on where it stopped." in out
    until(lambda: not ollama.pulling)


def test_ctrl_c_says_also_what_was_not_shown_yet(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.add(replace(LLAMA, size=10**9, pull_rate=10**6))

    def interrupted(*_: object) -> None:
        until(lambda: ollama.pulling)
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "follow", interrupted)
    assert 130 == main(["pull", NAME])
    assert "interrupted: llama3.2:1b pulling." in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m pytest_ollama_warmup pull {NAME} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "" == done.stderr


@pytest.mark.parametrize("command", [["cache-key", "a"], ["status", NAME]], ids=lambda c: c[0])
def test_what_nobody_reads_any_more_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    # Python would see at once that nobody reads.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_ollama_warmup", *command],
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (1, b"") == (done.returncode, done.stderr)


# What it imports


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def test_neither_the_command_line_nor_a_script_imports_pytest() -> None:
    after = modules_after(
        f"import pytest_ollama_warmup as w; w.preload({NAME!r})\n"
        f"from pytest_ollama_warmup.cli.main import main; main(['preload', {NAME!r}])"
    )
    assert "httpx" in after
    assert "pytest" not in after
    assert "_pytest" not in after


def test_help_imports_no_library() -> None:
    after = modules_after(
        "from pytest_ollama_warmup.cli.main import main\ntry: main(['pull', '--help'])\n"
        "except SystemExit: pass"
    )
    assert not after & {"httpx", "rich", "filelock"}


# For scripts


def test_preload_returns_what_happened(ollama: Emulator) -> None:
    record = pytest_ollama_warmup.preload(f"{NAME} phi9", warm="load")
    ready, failed = record.models.values()
    assert (True, NAME, 1_300_000) == (ready.ready, ready.model, ready.size)
    assert [failed] == record.failed
    assert failed.error.startswith("phi9 (from preload(specs=)): the registry has no such model")
    assert ("unknown model", "model") == (failed.cause, failed.failed_by)
    assert ("", "") == (ready.cause, ready.failed_by)
    assert 1 == len(ollama.loads)


def test_preload_says_that_it_is_the_server_that_failed(nobody: str) -> None:
    (failed,) = pytest_ollama_warmup.preload(NAME, host=nobody, wait=0).failed
    assert ("connection refused", "server") == (failed.cause, failed.failed_by)


def test_preload_takes_a_list_a_host_and_settings(ollama: Emulator) -> None:
    with Emulator([LLAMA]) as other:
        record = pytest_ollama_warmup.preload(
            ["chat,num_ctx=512"], host=other.url, alias="chat=llama3.2:1b", keep_alive="30m"
        )
        assert [] == record.failed
        assert [512] == [load.options["num_ctx"] for load in other.loads]
    assert [] == ollama.requests


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"specs": "a,b=1"}, BadSpec, "'b=1' (from preload(specs=)): unknown key 'b'"),
        (
            {"specs": None},
            TypeError,
            "expected model names as a string or a list of strings, got None",
        ),
        ({"specs": "a", "pull": "soon"}, BadSetting, "'soon' is not a valid preload(pull=)."),
        ({"specs": "a", "host": "ftp://x"}, BadHost, "'ftp://x' (from preload(host=))"),
        (
            {"specs": "a", "on_unavailable": "skip"},
            TypeError,
            "preload() got an unexpected keyword argument 'on_unavailable'",
        ),
    ],
)
def test_preload_refuses_what_cannot_be_meant(
    ollama: Emulator, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        pytest_ollama_warmup.preload(**arguments)
    assert message in str(caught.value)
    assert [] == ollama.requests


def test_a_test_of_a_run_may_call_it(ollama: Emulator, pytester: pytest.Pytester) -> None:
    suite = UserSuite(pytester)
    suite.write(
        {
            "test_it.py": f"""
                import pytest_ollama_warmup

                def test_it():
                    assert [] == pytest_ollama_warmup.preload({NAME!r}).failed
            """
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert [NAME] == ollama.pulls


def test_it_tells_its_version() -> None:
    run = Run("--version")
    assert (0, f"pytest-ollama-warmup {version('pytest-ollama-warmup')}\n") == (run.ret, run.out)


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("ollama-warmup")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "usage: ollama-warmup [-h] [--version] COMMAND" in done.stdout
