"""``ollama-warmup demo``."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup import demo
from pytest_ollama_warmup.cli import main
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.host import Host
from tests.command import Run, start
from tests.test_faults import BOUND_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = ScriptedModel("llama3.1:70b", size=40_000_000_000, present=True)
SMALL = ScriptedModel("qwen3:0.6b", size=500_000_000, present=True)
EMBED = ScriptedModel("embed:a", size=300_000_000, present=True, capabilities=("embedding",))
CLOUD = ScriptedModel("far:a", size=300, present=True, remote_host="https://ollama.com")


@pytest.fixture(autouse=True)
def _usual_server(ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (BIG, SMALL, EMBED, CLOUD):
        ollama.add(model)
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pytest would be run with, which it is not."""
    runs: list[list[str]] = []

    def run(stage: demo.Stage, folder: Path, args: list[str]) -> bool:
        runs.append(args)
        return True

    monkeypatch.setattr(demo, "_run", run)
    monkeypatch.setattr(demo, "_slowest", lambda report: "1 ms")
    return runs


# The whole of it, on the emulator


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        temporary = tmp_path_factory.mktemp("temporary")
        patch.setenv("TMPDIR", str(temporary))
        # A terminal without signs; options of the user that would spoil it.
        patch.setenv("PYTHONIOENCODING", "ascii")
        patch.setenv("PYTEST_ADDOPTS", "--nonsense")
        patch.setenv("OLLAMA_PRELOAD_MODELS", "a,b=1")
        begin = time.monotonic()
        run = Run("demo", "--emulator")
        assert time.monotonic() - begin < 30
        assert [] == [*Path.cwd().iterdir(), *temporary.glob("ollama-warmup-*")]
        yield run


def test_it_goes_well(emulated: Run) -> None:
    assert (0, "") == (emulated.ret, emulated.err), emulated.out


def test_every_line_with_a_figure_says_that_it_is_an_emulators(emulated: Run) -> None:
    for line in emulated.lines:
        assert line.startswith("[emulator] ") == bool(re.search(r"\d", line)), line
    assert "[emulator] An emulator plays Ollama" in emulated.lines[0]
    assert "Without --emulator it is shown on a real Ollama." == emulated.lines[-1]


def _seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) / {"ms": 1000, "s": 1}[unit]


def test_cold_is_slow_and_warm_is_not(emulated: Run) -> None:
    shown = emulated.out.partition("The slowest test took\n")[2]
    took = dict(re.findall(r"\[emulator\]   (\S.*?)  +(\d.*)", shown))
    assert [
        "without the plugin, cold",
        "with the plugin, cold",
        "with two workers, cold",
        "after an eviction",
    ] == list(took)
    # What a load takes is the emulator's; how much less the rest does, this machine's.
    cold, *warm = [_seconds(one) for one in took.values()]
    assert cold >= 1.5
    assert all(one < cold for one in warm), warm


def test_it_shows_two_workers_one_eviction_and_the_summary(emulated: Run) -> None:
    assert "[emulator] created: 2/2 workers" in emulated.lines
    assert 1 == emulated.out.count("was gone (unloaded, or the server was restarted), and loaded")
    assert 3 == len(re.findall(r"^\[emulator\] \+ smollm2:135m   ready", emulated.out, re.M))
    assert "report.xml" not in emulated.out


# Which model, on which server


def test_the_smallest_model_that_completes_text_is_taken_and_nothing_pulled(
    ollama: Emulator, runs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main(["demo"])
    out = capsys.readouterr().out
    assert out.startswith(f"Ollama 0.33.0 at {ollama.url} (from OLLAMA_HOST) with qwen3:0.6b (500 MB)")  # fmt: skip
    assert "emulator" not in out
    assert [
        ["--ollama-off", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "-n", "2", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "test_eviction.py"],
    ] == runs
    assert [] == ollama.pulls


def test_another_model_can_be_named(runs: list[list[str]]) -> None:
    assert 0 == main(["demo", "--model", "LLAMA3.1:70b"])
    assert ["--ollama-preload", "llama3.1:70b", "test_chat.py"] == runs[1]


@pytest.mark.usefixtures("runs")
def test_it_is_cold_before_what_is_called_cold(ollama: Emulator, client: Client) -> None:
    client.load("qwen3:0.6b", "generate", prompt="", options={}, limit_s=9)
    assert 0 == main(["demo"])
    assert [] == client.resident()
    assert 3 == sum(call.body.get("keep_alive") == 0 for call in ollama.calls("generate"))


@pytest.mark.parametrize(
    ("lease", "given"),
    [
        (-1, ["--ollama-keep-alive=-1"]),
        (7200, ["--ollama-keep-alive=7200"]),
        (60, []),
    ],
)
def test_a_model_that_was_loaded_has_no_shorter_lease_afterwards(
    client: Client, runs: list[list[str]], lease: int, given: list[str]
) -> None:
    client.load("qwen3:0.6b", "generate", prompt="", options={}, keep_alive=lease, limit_s=9)
    assert 0 == main(["demo"])
    asked = [arg for arg in runs[1] if "keep-alive" in arg]
    # The server tells its time in whole seconds.
    assert given == [re.sub("720[01]", "7200", arg) for arg in asked]


def test_on_another_machine_a_model_in_use_is_left_alone(
    client: Client, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "loopback", False)
    client.load("qwen3:0.6b", "generate", prompt="", options={}, limit_s=9)
    assert 0 == main(["demo"])
    assert "llama3.1:70b" in runs[1]
    assert ["qwen3:0.6b"] == [one.name for one in client.resident()]


def test_one_that_stays_in_use_ends_it(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: list[list[str]],
) -> None:
    monkeypatch.setattr(demo, "UNLOAD_LIMIT_S", 0.1)
    monkeypatch.setattr(Client, "unload", lambda *args: None)
    client.load("qwen3:0.6b", "generate", prompt="", options={}, limit_s=9)
    assert 1 == main(["demo"])
    assert "qwen3:0.6b is still in use" in capsys.readouterr().err
    assert [] == runs


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model=phi9"], 1, "ollama: phi9 (from --model) is not on http://"),
        (["--model=phi9"], 1, "Run 'ollama-warmup pull phi9' first."),
        (["--model=embed:a"], 1, "ollama: embed:a (from --model) does not complete text."),
        (["--model=far:a"], 1, "ollama: far:a (from --model) does not complete text."),
        (
            ["--model=a b"],
            2,
            "'a b' (from --model): ' ' is not allowed in the model; expected a model name",
        ),
        (["--host=localhost:9", "--wait=0"], 1, "no Ollama at http://localhost:9 (from --host)"),
        (["--host=ftp://x"], 2, "'ftp://x' (from --host) is not an address of an Ollama server"),
        (["--model=a", "--emulator"], 2, "use --model or --emulator, not both."),
        (["mistral"], 2, "unrecognized arguments: mistral"),
    ],
)
def test_what_the_user_names_is_used_or_refused(
    arguments: list[str], code: int, message: str
) -> None:
    run = Run("demo", *arguments)
    assert (code, "") == (run.ret, run.out)
    assert message in run.err
    assert "Traceback" not in run.err


# Without the real thing


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.usefixtures("runs")
def test_no_server_is_played_and_one_line_says_how_to_get_it(
    ollama: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    installed: bool,
) -> None:
    if installed:
        (tmp_path / "ollama").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ollama.stop()
    assert 0 == main(["demo", "--wait=0"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        f"[emulator] No real Ollama was used: no Ollama at {ollama.url} (from OLLAMA_HOST): "
        "connection refused. Start it with 'ollama serve', or set --ollama-host."
    ) in last
    assert installed == ("https://ollama.com/download" not in last)


@pytest.mark.usefixtures("runs")
def test_no_model_is_played_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator([EMBED, CLOUD]) as other:
        monkeypatch.setenv("OLLAMA_HOST", other.url)
        assert 0 == main(["demo"])
        assert [] == other.pulls
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("has no model that completes text. Run 'ollama pull smollm2:135m' (271 MB).")  # fmt: skip


def test_without_xdist_it_says_so(
    runs: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xdist" else found(name)
    )
    assert 0 == main(["demo"])
    assert 3 == len(runs)
    assert not any("-n" in run for run in runs)
    assert "Two workers are left out: pytest-xdist is not installed." in capsys.readouterr().out


def test_the_one_that_evicts_is_not_the_slowest(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    times = {"test_a": 0.01, "test_b": 0.02, "test_that_evicts": 3}
    cases = "".join(f'<testcase name="{name}" time="{time}"/>' for name, time in times.items())
    report.write_text(f"<testsuite>{cases}</testsuite>")
    assert "20 ms" == demo._slowest(report)


# How it ends


def test_tests_that_fail_are_told_and_have_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {**demo.FILES, "test_chat.py": "def test_it(): assert False"}
    monkeypatch.setattr(demo, "FILES", files)
    assert 1 == main(["demo", "--emulator"])
    out = capsys.readouterr().out
    assert "1 failed" in out
    *failed, last = out.partition("The slowest test took\n")[2].splitlines()[:4]
    assert ["failed"] * 3 == [line.split()[-1] for line in failed]
    assert last.startswith("[emulator]   after an eviction")


@pytest.mark.parametrize("to", ["all", "demo"])
def test_ctrl_c_leaves_nothing_behind(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("demo", "--emulator", start_new_session=True)
    assert process.stdout is not None
    assert any(" -n 2 " in line for line in process.stdout)
    if to == "all":
        # As a terminal does.
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=BOUND_S)
    assert (130, "") == (process.returncode, err)
    assert [] == list(tmp_path.glob("ollama-warmup-*"))

    def nobody_is_left() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(nobody_is_left)


def test_pytest_does_not_outlive_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left(demo.Stage):
        __slots__ = ()

        def say(self, *lines: str) -> None:
            until((tmp_path / "pid").exists)
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "END_LIMIT_S", 0.1)
    (tmp_path / "test_it.py").write_text(
        "import os, pathlib, time\n"
        "def test_it():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        demo._run(Left(client, "qwen3:0.6b"), tmp_path, ["test_it.py"])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m pytest_ollama_warmup demo --emulator | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "" == done.stderr
    assert 1 == len(done.stdout.splitlines())
