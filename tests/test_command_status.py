"""``ollama-warmup status`` and ``unload``."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.cli.status import Row, keep_alive, status_lines, unload_lines
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.errors import ServerUnreachable
from pytest_ollama_warmup.ollama.client import Client
from tests import terminals
from tests.command import Run, start
from tests.conftest import LLAMA
from tests.test_faults import BOUND_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "llama3.2:1b"
MISTRAL = ScriptedModel("mistral:latest", size=4_100_000_000, present=True)


@pytest.fixture(autouse=True)
def _usual_server(ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.add(replace(LLAMA, present=True))
    ollama.add(MISTRAL)
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)


def load(client: Client, name: str, lasting_s: float = 560, **options: int) -> None:
    client.load(name, "generate", prompt="", options=options, keep_alive=lasting_s, limit_s=9)


# status


@pytest.mark.parametrize("command", ["status", "ps"])
def test_the_table_has_what_is_loaded_and_what_is_wanted(client: Client, command: str) -> None:
    load(client, NAME, -1, num_ctx=8192)
    load(client, "mistral")
    url = client.host.url
    run = Run(command, "mistral", "gone", "--host", url.removeprefix("http://"))
    assert (1, "") == (run.ret, run.err)
    assert [
        f"ollama: {url} (from --host)",
        "  NAME             SIZE     CONTEXT   UNTIL",
        "✓ mistral:latest   4.1 GB   4096      9 minutes from now",
        "✗ gone:latest                         not pulled",
        "  llama3.2:1b      1.3 MB   8192      Forever",
        "ollama: 1 of 2 models not loaded. To load:",
        "  ollama-warmup preload gone",
    ] == run.lines


def test_all_that_is_wanted_is_there(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, "mistral")
    assert 0 == main(["status", "MISTRAL"])
    out = capsys.readouterr().out
    assert "✓ MISTRAL:latest   4.1 GB   4096      9 minutes from now\n" in out
    assert "not loaded" not in out


def test_one_that_is_pulled_and_not_loaded_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == main(["status", NAME])
    out = capsys.readouterr().out
    assert "✗ llama3.2:1b                    not loaded\n" in out
    assert out.endswith(
        "ollama: 1 of 1 model not loaded. To load:\n  ollama-warmup preload llama3.2:1b\n"
    )


def test_nothing_named_shows_the_table_and_is_bad_usage(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "ollama-warmup {}: error: no model named. "
        "Name one or more, or list them in OLLAMA_PRELOAD_MODELS.\n"
    )
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "")
    assert 2 == main(["ps"])
    out, err = capsys.readouterr()
    assert (True, said.format("ps")) == (out.endswith("ollama: no model is loaded\n"), err)
    load(client, "mistral")
    assert 2 == main(["status"])
    out, err = capsys.readouterr()
    shown = "  mistral:latest   4.1 GB"
    assert (shown, said.format("status")) == (out.splitlines()[-1][:25], err)
    assert 2 == main(["status", "--json"])
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert ("mistral:latest", False) == (model["model"], model["missing"])


def test_the_environment_says_what_is_wanted_as_for_preload(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "mistral,num_ctx=512")
    monkeypatch.setenv("OLLAMA_MODELS", NAME)
    assert 1 == main(["status"])
    out = capsys.readouterr().out
    assert "ollama-warmup preload mistral,num_ctx=512\n" in out
    assert NAME not in out


def test_another_context_is_told_and_is_no_failure(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # The context of a model that cannot have so much stays smaller.
    load(client, "mistral")
    assert 0 == main(["status", "mistral,num_ctx=8192"])
    assert (
        "✓ mistral:latest   4.1 GB   4096 (wanted 8192)   9 minutes from now"
        in capsys.readouterr().out
    )


def test_another_version_than_the_pinned_one_is_missing(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    (loaded_models,) = client.loaded_models()
    assert 0 == main(["status", f"mistral@sha256:{loaded_models.digest[:12]}"])
    assert 1 == main(["status", "mistral@sha256:0a109f42"])
    out = capsys.readouterr().out
    assert "✗ mistral:latest   4.1 GB   4096      another version is loaded\n" in out


def test_another_name_of_a_loaded_model_is_loaded(
    ollama: Emulator, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    (loaded_models,) = client.loaded_models()
    ollama.add(ScriptedModel("chat:a", present=True, digest=loaded_models.digest))
    assert 0 == main(["status", "chat:a"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("✓ chat:a   4.1 GB   4096      9 minutes")


def test_what_runs_in_the_cloud_is_not_missing(
    ollama: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.add(ScriptedModel("mine:a", present=True, remote_host="https://ollama.com"))
    assert 0 == main(["status", "mine:a", "gpt-oss:120b-cloud"])
    *_, mine, cloud = capsys.readouterr().out.splitlines()
    assert ["✓", "mine:a", "runs in the cloud"] == mine.split(None, 2)
    assert ["✓", "gpt-oss:120b-cloud", "runs in the cloud"] == cloud.split(None, 2)


def test_a_status_as_json(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, NAME, -1)
    load(client, "mistral", num_ctx=512)
    assert 1 == main(["status", "--json", "mistral,num_ctx=8192", "gone"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (1, client.host.url, "") == (told["schema"], told["host"], told["error"])
    mistral, gone, llama = told["models"]
    # The server's clock ticks in seconds.
    assert 550 < mistral.pop("keep_alive_s") <= 561
    assert {
        "model": "mistral:latest",
        "state": "loaded",
        "wanted": "mistral,num_ctx=8192",
        "wanted_context": 8192,
        "context_length": 512,
        "size": 4_100_000_000,
        "digest": client.local_models()[1].digest,
        "did_you_mean": "",
        "missing": False,
    } == mistral
    assert ("not pulled", True, None) == (gone["state"], gone["missing"], gone["keep_alive_s"])
    assert (NAME, "", -1, False) == (
        llama["model"],
        llama["wanted"],
        llama["keep_alive_s"],
        llama["missing"],
    )


def test_a_status_of_a_mistyped_model_says_which_one_is_local(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 1 == main(["status", "lama3.2:1b,num_ctx=512", "nope"])
    assert [
        f"ollama: lama3.2:1b is not local. Did you mean {NAME}?",
        "ollama: 2 of 2 models not loaded. To load:",
        f"  ollama-warmup preload {NAME},num_ctx=512 nope",
    ] == capsys.readouterr().out.splitlines()[-3:]
    assert 1 == main(["status", "--json", "lama3.2:1b"])
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (NAME, True) == (row["did_you_mean"], row["missing"])


@pytest.mark.parametrize(
    ("left_s", "words"),
    [
        (None, ""),
        (0.0, "Stopping..."),
        (0.5, "Less than a second from now"),
        (1.9, "1 second from now"),
        (40.4, "40 seconds from now"),
        (90.0, "About a minute from now"),
        (120.0, "2 minutes from now"),
        (299.0, "4 minutes from now"),
        (3599.0, "59 minutes from now"),
        (3600.0, "About an hour from now"),
        (7200.0, "2 hours from now"),
        (47 * 3600.0, "47 hours from now"),
        (5 * 86400.0, "5 days from now"),
        (-1.0, "Forever"),
    ],
)
def test_until_says_what_ollama_ps_says(left_s: float | None, words: str) -> None:
    row = Row(model="m", state="loaded", keep_alive_s=left_s, context_length=4096, size=1000)
    _, line = status_lines([row])
    assert ["m", "1.0", "kB", "4096", *words.split()] == line.split()


def test_a_keep_alive_of_centuries_is_none_and_one_that_is_over_is_0() -> None:
    assert (-1, 0, 5) == (keep_alive(9e9), keep_alive(-3), keep_alive(5))


LONG = "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"


@pytest.mark.parametrize("plain", [False, True])
def test_no_row_is_wider_than_the_terminal(plain: bool) -> None:
    loaded = Row(
        model=LONG,
        state="loaded",
        wanted=LONG,
        wanted_context=131072,
        context_length=4096,
        keep_alive_s=-1,
        size=900_000_000,
    )
    rows = [loaded, Row(model="mistral:latest", state="other version", wanted="mistral@sha256:0")]
    lines = status_lines(rows, plain=plain, width=80)
    assert [80] == [len(line) for line in lines if "mistral" in line]
    assert max(map(len, lines)) <= 80
    gap = "..." if plain else "…"
    assert gap in lines[1]
    assert lines[1].split()[1].endswith(":Q4_K_M")
    assert "mistral:latest " in lines[2]
    # What is piped into a program keeps its names.
    assert LONG in status_lines(rows, plain=plain)[1]
    unloads = [{"model": LONG, "state": "in use", "size": 1, "did_you_mean": ""}]
    (line,) = unload_lines(unloads, plain=plain, width=80)
    assert 80 == len(line)


def test_a_terminal_of_80_columns_gets_80_columns(ollama: Emulator, client: Client) -> None:
    ollama.add(ScriptedModel(LONG, present=True))
    load(client, LONG)
    command = ["pytest_ollama_warmup", "ps"]
    shown = terminals.run(
        [*command, f"{LONG},num_ctx=131072", "mistral"], Path.cwd(), os.environ, 80
    )
    assert 1 == shown.code
    _, *table, _, _ = shown.screen[:-1]
    assert 3 == len(table)
    assert max(map(len, table)) == 80
    assert "…" in table[1]


def test_a_table_for_a_terminal_without_signs() -> None:
    rows = [
        Row(model="a", state="loaded", wanted="a"),
        Row(model="b", state="not loaded", wanted="b"),
    ]
    assert ["+ a", "x b"] == [line[:3] for line in status_lines(rows, plain=True)[1:]]


# Where there is no server to ask


@pytest.mark.usefixtures("ollama_in_path")
@pytest.mark.parametrize("command", [["status"], ["unload", "mistral"], ["cache-key", "--digests", "mistral"]])  # fmt: skip
def test_no_server_is_told_soon_and_without_a_traceback(
    ollama: Emulator, command: list[str]
) -> None:
    ollama.stop()
    run = Run(*command, "--wait=0.1")
    assert (1, "") == (run.ret, run.out)
    assert [
        f"ollama: no Ollama at {ollama.url} (from OLLAMA_HOST): connection refused for 0.1 s. "
        "[server-unreachable] Start it with 'ollama serve', or set --ollama-host."
    ] == run.err.splitlines()


def test_no_server_is_a_document_too(ollama: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    ollama.stop()
    assert 1 == main(["status", "--json", "--wait=0"])
    told = json.loads(capsys.readouterr().out)
    assert ([], True) == (told["models"], "connection refused" in told["error"])


def test_an_answer_that_is_an_error_says_whose_it_is(
    ollama: Emulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded_models(client: Client) -> None:
        ollama.answer_all_with(500, "application/json", '{"error": "no such runner"}')
        client.local_models()

    monkeypatch.setattr(Client, "loaded_models", loaded_models)
    assert 1 == main(["status"])
    assert (
        f"ollama: {ollama.url} (from OLLAMA_HOST) answers with an error: "
        "/api/tags: HTTP 500: no such runner. Its log may say why.\n"
    ) == capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["status", "unload a", "cache-key --digests a"],
    ids=lambda command: command.split()[0],
)
def test_nobody_waits_long_for_a_look_in_ci_either(
    ollama: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setenv("CI", "true")
    ollama.stop()
    assert 1 == main(command.split())
    assert "connection refused for 0.3 s." in capsys.readouterr().err
    assert 1 == main([*command.split(), "--wait=0.5"])
    assert "connection refused for 0.5 s." in capsys.readouterr().err


def test_a_server_elsewhere_is_given_longer_in_ci_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[tuple[float, float | None]] = []

    def wait_until_ready(
        client: Client, limit_s: float, on_wait: object = None, *, refused_s: float | None = None
    ) -> str:
        waits.append((limit_s, refused_s))
        raise ServerUnreachable(client.host.url, client.host.source, "connection refused", limit_s)

    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(Client, "wait_until_ready", wait_until_ready)
    assert 1 == main(["status", "--host=gpu"])
    assert [(2.0, 2.0)] == waits
    assert "http://gpu:11434" in capsys.readouterr().err


def test_ctrl_c_in_a_wait_leaves_without_a_word_more(ollama: Emulator) -> None:
    ollama.stop()
    process = start("status", "--wait=60")
    assert process.stderr is not None
    assert "waiting for http" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ("", "") == process.communicate(timeout=BOUND_S)
    assert 130 == process.returncode


# unload


@pytest.mark.parametrize("command", ["unload", "stop"])
def test_what_is_named_is_unloaded_and_nothing_else(
    ollama: Emulator, client: Client, command: str
) -> None:
    ollama.add(ScriptedModel("idle:a", present=True))
    ollama.add(ScriptedModel("far:a", present=True, remote_host="https://ollama.com"))
    load(client, NAME)
    load(client, "mistral")
    run = Run(command, "mistral", "idle:a", "far:a")
    assert (0, "") == (run.ret, run.err)
    assert [
        f"ollama: {client.host.url} (from OLLAMA_HOST)",
        "✓ mistral:latest   unloaded (4.1 GB)",
        "✓ idle:a           was not loaded",
        "✓ far:a            runs in the cloud",
    ] == run.lines
    assert [NAME] == [one.name for one in client.loaded_models()]


def test_a_model_that_nobody_knows_is_an_error_and_the_others_are_unloaded(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    assert 1 == main(["unload", "mistral", "lama3.2:1b", "nope"])
    _, *rows = capsys.readouterr().out.splitlines()
    assert [
        "✓ mistral:latest   unloaded (4.1 GB)",
        "✗ lama3.2:1b       neither loaded nor local; did you mean llama3.2:1b?",
        "✗ nope:latest      neither loaded nor local",
    ] == rows
    assert [] == client.loaded_models()
    assert 1 == main(["unload", "--json", "lama3.2:1b"])
    assert [
        {
            "model": "lama3.2:1b",
            "state": "not found",
            "size": 0,
            "did_you_mean": NAME,
        }
    ] == json.loads(capsys.readouterr().out)["models"]


def test_another_version_than_the_pinned_one_stays(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    assert 0 == main(["unload", "mistral@sha256:0a109f42"])
    assert "✓ mistral:latest   was not loaded; another version is" in capsys.readouterr().out
    (loaded,) = client.loaded_models()
    assert 0 == main(["unload", f"mistral@sha256:{loaded.digest[:12]}"])
    assert [] == client.loaded_models()


def test_a_loaded_model_that_is_no_longer_local_is_unloaded(
    ollama: Emulator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(client, "mistral")
    monkeypatch.setattr(Client, "local_models", lambda self: [])
    assert 0 == main(["unload", "mistral"])
    assert [] == client.loaded_models()


def test_all_is_all(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, NAME)
    load(client, "mistral")
    assert 0 == main(["unload", "--all"])
    assert 2 == capsys.readouterr().out.count("unloaded")
    assert [] == client.loaded_models()
    assert 0 == main(["unload", "--all"])
    assert "ollama: no model is loaded" in capsys.readouterr().out


def test_all_is_not_what_the_environment_lists(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", NAME)
    assert 0 == main(["unload"])
    assert ["mistral:latest"] == [one.name for one in client.loaded_models()]
    capsys.readouterr()
    assert 0 == main(["unload", "--all"])
    assert [] == client.loaded_models()
    said = f"ollama: {client.host.url} (from OLLAMA_HOST)\n✓ mistral:latest   unloaded"
    assert capsys.readouterr().out.startswith(said)


def test_another_name_unloads_too(ollama: Emulator, client: Client) -> None:
    load(client, "mistral")
    (loaded_models,) = client.loaded_models()
    ollama.add(ScriptedModel("chat:a", present=True, digest=loaded_models.digest))
    assert 0 == main(["unload", "chat:a"])
    assert [] == client.loaded_models()


def test_unloads_as_json(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, "mistral")
    assert 0 == main(["unload", "--json", "mistral", NAME])
    assert [
        {
            "model": "mistral:latest",
            "state": "unloaded",
            "size": 4_100_000_000,
            "did_you_mean": "",
        },
        {"model": NAME, "state": "not loaded", "size": 0, "did_you_mean": ""},
    ] == json.loads(capsys.readouterr().out)["models"]


@pytest.fixture
def at_work(ollama: Emulator, client: Client) -> Iterator[None]:
    """Have mistral answer for half a second."""
    load(client, "mistral")
    ollama.add(replace(MISTRAL, eval_s=0.5))
    ask: dict[str, Any] = {"prompt": "Why?", "options": {}, "keep_alive": None, "limit_s": 9}
    asking = threading.Thread(target=client.load, args=("mistral", "generate"), kwargs=ask)
    asking.start()
    until(lambda: 2 == len(ollama.calls("generate")))
    yield
    asking.join()
    until(lambda: not client.loaded_models())


@pytest.mark.usefixtures("at_work")
def test_one_that_is_at_work_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["unload", "mistral"])
    assert "✓ mistral:latest   unloaded (4.1 GB)\n" in capsys.readouterr().out


@pytest.mark.usefixtures("at_work")
def test_one_that_stays_at_work_is_told_and_goes_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytest_ollama_warmup.cli.commands.UNLOAD_LIMIT_S", 0.0)
    assert 1 == main(["unload", "mistral"])
    out = capsys.readouterr().out
    assert "✗ mistral:latest   still in use; unloads when its requests end\n" in out
    assert 1 == main(["unload", "mistral", "--json"])
    assert ["in use"] == [one["state"] for one in json.loads(capsys.readouterr().out)["models"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unload"], "ollama-warmup unload: error: no model named. Name one or more, or list them in OLLAMA_PRELOAD_MODELS, or use --all."),
        (["stop"], "ollama-warmup stop: error: no model named."),
        (["unload", "--all", "mistral"], "ollama-warmup unload: error: name models or use --all, not both."),
        (["unload", "a,b=1"], "'b=1' (from the command line): unknown key 'b'"),
        (["status", "--wait=soon"], "'soon' is not a valid --wait."),
        (["status", "--pull=never"], "unrecognized arguments: --pull=never"),
        (["status", "a,num_ctx=1"], "'num_ctx=1' (from the command line)"),
    ],
)  # fmt: skip
def test_bad_usage(ollama: Emulator, arguments: list[str], message: str) -> None:
    run = Run(*arguments)
    assert (2, "") == (run.ret, run.out)
    assert message in run.err
    assert "Traceback" not in run.err
    assert [] == ollama.requests
