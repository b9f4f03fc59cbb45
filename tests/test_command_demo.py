"""``ollama-warmup demo``."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.cli import demo, demo_suite
from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import Host
from tests import terminals
from tests.command import Run, start
from tests.live import provide as live
from tests.live.commands import Missing
from tests.test_faults import BOUND_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    def run(folder: Path, args: list[str], ollama_host: str) -> float:
        runs.append(args)
        return 0.9 - 0.1 * len(runs)

    monkeypatch.setattr(demo_suite, "run", run)
    return runs


def unwrapped(text: str) -> list[str]:
    """Return the paragraphs of *text*, each on one line."""
    return [" ".join(one.split()) for one in text.split("\n\n")]


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
        run = Run("demo", "--emulator")
        assert [] == [*Path.cwd().iterdir(), *temporary.glob("ollama-warmup-*")]
        yield run


def test_it_goes_well(emulated: Run) -> None:
    assert (0, "") == (emulated.ret, emulated.err), emulated.out


def test_every_figure_says_that_it_is_an_emulators(emulated: Run) -> None:
    intro, *runs = re.split(r"^-- ", emulated.out, flags=re.MULTILINE)
    *runs, last = [*runs[:-1], *re.split("\n(?= +slowest test)", runs[-1])]
    assert 4 == len(runs)
    for run in runs:
        assert run.splitlines()[0].endswith(" (emulated)")
        assert re.search(r"^\S* ?emulated   (already )?loaded|--ollama-off", run, re.MULTILINE)
    _, *rows = last.partition("\n\n")[0].splitlines()
    assert all(row.endswith(" (emulated)") for row in rows)
    for text in [*unwrapped(intro), *unwrapped(last)]:
        assert not re.search(r"\d", text) or "emulat" in text, text
    assert "An emulator stands in for Ollama" in emulated.lines[0]
    assert "Leave out --emulator to run the demo on a real Ollama." == emulated.lines[-1]


def _seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) / {"ms": 1000, "s": 1}[unit]


def test_cold_is_slow_and_warm_is_not(emulated: Run) -> None:
    shown = emulated.out.partition("slowest test   whole run\n")[2]
    rows = re.findall(r"^(\S.*?)  +(\d+\S* \S+) +(\d\S* \S+) +\(emulated\)$", shown, re.M)
    took = {title: slowest for title, slowest, _ in rows}
    assert [
        "without the plugin, cold",
        "with the plugin, cold",
        "with two workers, cold",
        "after an eviction",
    ] == list(took)
    # What a load takes is the emulator's; how much less the rest does, this machine's.
    cold, *warm = [_seconds(one) for one in took.values()]
    assert cold >= demo.LOAD_S
    assert all(one < cold for one in warm), warm
    # The load is part of each run, wherever it happens.
    assert all(_seconds(whole) > demo.LOAD_S for *_, whole in rows)


def test_what_it_says_of_its_table_is_in_its_table(emulated: Run) -> None:
    without, with_it = re.findall(r" the plugin, cold +(\d+\S* \S+) ", emulated.out)
    (said,) = (one for one in unwrapped(emulated.out) if one.startswith("The slowest test took"))
    assert said.startswith(
        f"The slowest test took {without} without the plugin and {with_it} with it (emulated). "
    )
    assert not re.search(r"×|\bx as fast|times as fast|faster", emulated.out)


def test_in_a_terminal_pytest_has_its_colours_and_lines_break_between_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    environ = {**os.environ, "TERM": "xterm-256color"}
    command = ["pytest_ollama_warmup", "demo", "--emulator"]
    shown = terminals.run(command, tmp_path, environ, 64)
    assert 0 == shown.code, shown.text
    assert "green" == shown.colour_of("✓")
    _, _, own = shown.raw.partition("slowest test   whole run")
    assert max(map(len, own.splitlines())) <= 64
    assert any(
        one.startswith("The slowest test took ") for one in unwrapped("\n".join(shown.screen))
    )


def test_it_shows_two_workers_one_eviction_and_the_summary(emulated: Run) -> None:
    assert "created: 2/2 workers" in emulated.lines
    assert 1 == emulated.out.count("was gone (unloaded, or the server was restarted), and loaded")
    assert 3 == len(re.findall(r"^\+ emulated   (already )?loaded", emulated.out, re.M))


# Which model, on which server


def test_the_smallest_model_that_completes_text_is_taken_and_nothing_pulled(
    ollama: Emulator, runs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main(["demo"])
    out = capsys.readouterr().out
    assert [
        f"Ollama 0.33.0 at {ollama.url} (from OLLAMA_HOST).",
        "Model: qwen3:0.6b (500 MB).",
        "It stays loaded after the demo until its keep-alive ends. Nothing is downloaded.",
    ] == out.splitlines()[:3]
    assert "emulator" not in out
    assert "toy" not in out
    assert [
        ["--ollama-off", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "-n", "2", "test_chat.py"],
        ["--ollama-preload", "qwen3:0.6b", "test_eviction.py"],
    ] == runs
    assert [] == ollama.pulls


def test_figures_of_a_toy_model_say_so(
    ollama: Emulator, runs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.add(ScriptedModel("toy:a", size=1_700_000, present=True))
    assert 0 == main(["demo"])
    out = capsys.readouterr().out
    assert ["--ollama-preload", "toy:a", "test_chat.py"] == runs[1]
    assert "\nThis is a toy model for tests. Loading a real one takes seconds to minutes.\n" in out
    assert "\n-- with the plugin, cold (toy model)\n" in out
    rows = out.partition("slowest test   whole run\n")[2].partition("\n\n")[0].splitlines()
    assert [True] * 4 == [row.endswith(" (toy model)") for row in rows]


@pytest.mark.usefixtures("runs")
def test_the_file_is_in_the_disk_cache_before_the_first_run(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 == main(["demo"])
    # Otherwise only the run without the plugin would read it from the disk.
    first, *rest = ollama.calls("generate")
    assert ("", None) == (first.body["prompt"], first.body.get("keep_alive"))
    assert [0, 0, 0] == [call.body.get("keep_alive") for call in rest]


def test_another_model_can_be_named(runs: list[list[str]]) -> None:
    assert 0 == main(["demo", "--model", "LLAMA3.1:70b"])
    assert ["--ollama-preload", "llama3.1:70b", "test_chat.py"] == runs[1]


@pytest.mark.usefixtures("runs")
def test_it_is_cold_before_what_is_called_cold(ollama: Emulator, client: Client) -> None:
    client.load("qwen3:0.6b", "generate", prompt="", options={}, limit_s=9)
    assert 0 == main(["demo"])
    assert [] == client.loaded_models()
    assert 3 == sum(call.body.get("keep_alive") == 0 for call in ollama.calls("generate"))


@pytest.mark.parametrize(
    ("keep_alive", "given"),
    [
        (-1, ["--ollama-keep-alive=-1"]),
        (7200, ["--ollama-keep-alive=7200"]),
        (60, []),
    ],
)
def test_a_model_that_was_loaded_has_no_shorter_keep_alive_afterwards(
    client: Client, runs: list[list[str]], keep_alive: int, given: list[str]
) -> None:
    client.load("qwen3:0.6b", "generate", prompt="", options={}, keep_alive=keep_alive, limit_s=9)
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
    assert ["qwen3:0.6b"] == [one.name for one in client.loaded_models()]


def test_on_another_machine_a_model_in_use_is_refused_by_name(
    client: Client,
    runs: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Host, "loopback", False)
    client.load("qwen3:0.6b", "generate", prompt="", options={}, limit_s=9)
    assert 1 == main(["demo", "--model=qwen3:0.6b"])
    assert "qwen3:0.6b (from --model) is loaded on" in capsys.readouterr().err
    assert ([], ["qwen3:0.6b"]) == (runs, [one.name for one in client.loaded_models()])


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


@pytest.fixture
def installed(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], None]:
    """Stop the user's server, and have a script be the only ``ollama`` that there is."""
    monkeypatch.setattr("pytest_ollama_warmup.ollama.process._PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    ollama.stop()

    def install(script: str) -> None:
        (tmp_path / "ollama").write_text(script)
        (tmp_path / "ollama").chmod(0o755)

    return install


@pytest.mark.usefixtures("runs", "installed")
def test_without_ollama_the_first_line_says_why_and_the_last_one_how_to_install_it(
    ollama: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main(["demo"])
    lines = unwrapped(capsys.readouterr().out)
    assert (
        f"No real Ollama is used: no Ollama at {ollama.url} (from OLLAMA_HOST): connection "
        "refused for 0.3 s. Start or install it (ollama.com/download), or set --ollama-host."
    ) == lines[0]
    assert (
        "To install Ollama: https://ollama.com/download, then 'ollama pull smollm2:135m' (271 MB)."
    ) == lines[-1]


# Answers as the emulator does, on the address that the variable says; leaves a file as it ends.
SERVER = f"""#!{sys.executable}
import os, pathlib, signal, sys, threading
sys.path[:0] = {sys.path!r}
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
here = pathlib.Path(__file__).parent
port = int(os.environ["OLLAMA_HOST"].rpartition(":")[2])
there = Emulator([ScriptedModel("mine:a", size=300_000_000, present=True)], port=port)
(here / "ran").write_text(" ".join(sys.argv[1:]) + " " + os.environ.get("OLLAMA_MODELS", ""))
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *args: ended.set())
with there:
    ended.wait()
(here / "ended").touch()
"""


def test_an_installed_ollama_is_started_for_the_demo_and_stopped_with_it(
    installed: Callable[[str], None],
    runs: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", "/srv/models")
    monkeypatch.setenv("COLUMNS", "400")
    installed(SERVER)
    assert 0 == main(["demo", "--wait=0"])
    assert [
        f"Ollama 0.33.0 started from {tmp_path / 'ollama'}.",
        "Model: mine:a (300 MB).",
        "The server uses a free port and stops with the demo. Nothing is downloaded.",
    ] == capsys.readouterr().out.splitlines()[:3]
    assert ["--ollama-preload", "mine:a", "test_chat.py"] == runs[1]
    assert "serve /srv/models" == (tmp_path / "ran").read_text()
    assert (tmp_path / "ended").exists()


@pytest.mark.usefixtures("runs")
def test_an_ollama_that_does_not_start_says_why(
    installed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed("#!/bin/sh\necho no disk >&2\nexit 1\n")
    assert 0 == main(["demo", "--wait=0"])
    assert (
        "No real Ollama is used: 'ollama serve' did not start: exit code 1 (no disk)."
    ) == unwrapped(capsys.readouterr().out)[0]


def test_a_server_that_the_user_names_is_not_replaced_by_a_private_one(
    ollama: Emulator,
    installed: Callable[[str], None],
    runs: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed(SERVER)
    assert 1 == main(["demo", "--wait=0", "--host", ollama.url])
    assert f"no Ollama at {ollama.url} (from --host)" in capsys.readouterr().err
    assert [] == runs


@pytest.mark.usefixtures("runs")
def test_no_model_is_played_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator([EMBED, CLOUD]) as other:
        monkeypatch.setenv("OLLAMA_HOST", other.url)
        assert 0 == main(["demo"])
        assert [] == other.pulls
    first = unwrapped(capsys.readouterr().out)[0]
    assert first.endswith("has no model that completes text. Run 'ollama pull smollm2:135m' (271 MB).")  # fmt: skip


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
    out = capsys.readouterr().out
    assert "No run with two workers: pytest-xdist is not installed." in out.splitlines()
    assert 1 == out.count(" workers")


def test_the_one_that_evicts_is_not_the_slowest(tmp_path: Path) -> None:
    conftest: dict[str, Any] = {}
    exec(textwrap.dedent(demo_suite.FILES["conftest.py"]), conftest)
    for name, seconds in {"test_b": 0.01, "test_after": 0.02, "test_that_evicts": 3}.items():
        for _ in ("setup", "call"):
            report = SimpleNamespace(nodeid=f"test_eviction.py::{name}", duration=seconds)
            conftest["pytest_runtest_logreport"](report)
    conftest["pytest_unconfigure"](SimpleNamespace(rootpath=tmp_path))
    assert "0.04" == (tmp_path / "slowest.txt").read_text()


# How it ends


def test_tests_that_fail_are_told_and_have_no_figure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {**demo_suite.FILES, "test_chat.py": "def test_it(): assert False"}
    monkeypatch.setattr(demo_suite, "FILES", files)
    assert 1 == main(["demo", "--emulator"])
    out = capfd.readouterr().out
    assert "1 failed" in out
    *failed, last = out.partition("slowest test   whole run\n")[2].splitlines()[:4]
    assert ["failed"] * 3 == [line.split()[-2] for line in failed]
    assert last.startswith("after an eviction ")
    # What the table does not show is not said of it.
    assert "The slowest test took" not in out


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


def test_pytest_does_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None and self.poll() is None and not self.terminated:
                until((tmp_path / "pid").exists)
                raise KeyboardInterrupt
            return super().wait(timeout)

        terminated = False

        def terminate(self) -> None:
            self.terminated = True
            super().terminate()

    monkeypatch.setattr(subprocess, "Popen", Left)
    monkeypatch.setattr(demo_suite, "END_LIMIT_S", 0.1)
    (tmp_path / "test_it.py").write_text(
        "import os, pathlib, time\n"
        "def test_it():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        demo_suite.run(tmp_path, ["test_it.py"], "127.0.0.1:1")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m pytest_ollama_warmup demo --emulator | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "" == done.stderr
    assert 1 == len(done.stdout.splitlines())


# tox -e demo


class Heard(io.StringIO):
    """A standard output that is a pipe: only what was flushed is *seen*."""

    seen = ""

    def flush(self) -> None:
        self.seen = self.getvalue()


@pytest.mark.usefixtures("runs")
def test_tox_builds_nothing_where_there_is_an_ollama(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "provide", None)
    assert 0 == live.demo()
    assert "qwen3:0.6b" in capsys.readouterr().out


def test_tox_says_what_a_build_takes_after_the_emulator_and_before_it_builds(
    installed: Callable[[str], None],
    runs: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Heard()
    monkeypatch.setattr(sys, "stdout", heard)

    def provide() -> None:
        assert 4 == len(runs)
        emulated, _, rest = heard.seen.partition("\n== ")
        assert "An emulator stands in for Ollama" in emulated
        assert rest.startswith(
            "Now the same on a real Ollama. Building it takes 5 to 10 minutes, once.\n"
            "== Ctrl-C stops it.\n"
        )
        assert heard.getvalue() == heard.seen
        raise Missing("no C compiler")

    monkeypatch.setattr(live, "provide", provide)
    assert 0 == live.demo()
    assert heard.seen.endswith("A real Ollama cannot be built here: no C compiler\n")
