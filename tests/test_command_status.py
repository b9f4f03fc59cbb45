"""``ollama-warmup status`` and ``unload``."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.cli import main
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.report.status import Row, lease, status_lines
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


def load(client: Client, name: str, keep_alive: float = 560, **options: int) -> None:
    client.load(name, "generate", prompt="", options=options, keep_alive=keep_alive, limit_s=9)


# status


def test_the_table_has_what_is_resident_and_what_is_wanted(client: Client) -> None:
    load(client, NAME, -1, num_ctx=8192)
    load(client, "mistral")
    url = client.host.url
    run = Run("status", "mistral", "gone", "--host", url.removeprefix("http://"))
    assert (1, "") == (run.ret, run.err)
    assert [
        f"ollama: {url} (from --host), wanted mistral gone (from the command line)",
        "  model            resident         wanted   context   expires    memory",
        "✓ mistral:latest   yes              yes      4096      in 9 min   4.1 GB",
        "✗ gone:latest      no, not pulled   yes",
        "  llama3.2:1b      yes              no       8192      never      1.3 MB",
        "ollama: not all are in memory; this brings them: ollama-warmup preload gone",
    ] == run.lines


def test_all_that_is_wanted_is_there(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, "mistral")
    assert 0 == main(["status", "MISTRAL"])
    assert "✓ MISTRAL:latest   yes        yes" in capsys.readouterr().out


def test_one_that_is_pulled_and_not_loaded_is_lacking(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == main(["status", NAME])
    out = capsys.readouterr().out
    assert "✗ llama3.2:1b   no         yes" in out
    assert out.endswith("ollama-warmup preload llama3.2:1b\n")


def test_nothing_wanted_and_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["status"])
    assert "ollama: no model is in memory, and none is named" in capsys.readouterr().out


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
    # A model that cannot have so much has less for ever.
    load(client, "mistral")
    assert 0 == main(["status", "mistral,num_ctx=8192"])
    assert (
        "✓ mistral:latest,num_ctx=8192   yes        yes      4096, wanted 8192   in 9 min"
        in capsys.readouterr().out
    )


def test_another_version_than_the_pinned_one_is_lacking(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    (resident,) = client.resident()
    assert 0 == main(["status", f"mistral@sha256:{resident.digest[:12]}"])
    assert 1 == main(["status", "mistral@sha256:0a109f42"])
    assert "✗ mistral:latest@sha256:0a109f42   other version   yes" in capsys.readouterr().out


def test_another_name_of_a_resident_model_is_resident(
    ollama: Emulator, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    (resident,) = client.resident()
    ollama.add(ScriptedModel("chat:a", present=True, digest=resident.digest))
    assert 0 == main(["status", "chat:a"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("✓ chat:a   yes        yes      4096")


def test_what_runs_in_the_cloud_is_not_lacking(
    ollama: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    ollama.add(ScriptedModel("mine:a", present=True, remote_host="https://ollama.com"))
    assert 0 == main(["status", "mine:a", "gpt-oss:120b-cloud"])
    *_, mine, cloud = capsys.readouterr().out.splitlines()
    assert ["✓ mine:a               in the cloud   yes", "✓ gpt-oss:120b-cloud   in the cloud   yes"] == [mine, cloud]  # fmt: skip


def test_a_status_as_json(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, NAME, -1)
    load(client, "mistral", num_ctx=512)
    assert 1 == main(["status", "--json", "mistral,num_ctx=8192", "gone"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (1, client.host.url, "") == (told["schema"], told["host"], told["error"])
    mistral, gone, llama = told["models"]
    # The server's clock ticks in seconds.
    assert 550 < mistral.pop("lease_s") <= 561
    assert {
        "model": "mistral:latest,num_ctx=8192",
        "state": "resident",
        "wanted": "mistral,num_ctx=8192",
        "wanted_context": 8192,
        "context_length": 512,
        "size": 4_100_000_000,
        "digest": client.stored()[1].digest,
        "lacking": False,
    } == mistral
    assert ("not pulled", True, None) == (gone["state"], gone["lacking"], gone["lease_s"])
    assert (NAME, "", -1, False) == (
        llama["model"],
        llama["wanted"],
        llama["lease_s"],
        llama["lacking"],
    )


@pytest.mark.parametrize(
    ("left_s", "words"),
    [
        (None, ""),
        (0.0, "when idle"),
        (40.4, "in 40 s"),
        (90.0, "in 90 s"),
        (119.9, "in 2 min"),
        (560.0, "in 9 min"),
        (3600.0, "in 60 min"),
        (7200.0, "in 2 h"),
        (5 * 86400.0, "in 5 days"),
        (-1.0, "never"),
    ],
)
def test_a_lease_is_told_in_words(left_s: float | None, words: str) -> None:
    _, line = status_lines([Row(model="m", state="resident", lease_s=left_s, size=1000)])
    assert f"yes no {words} 1.0 kB".split() == line.split()[1:]


def test_a_lease_in_centuries_is_for_ever_and_one_that_is_over_is_0() -> None:
    assert (-1, 0, 5) == (lease(9e9), lease(-3), lease(5))


def test_a_table_for_a_terminal_without_signs() -> None:
    rows = [
        Row(model="a", state="resident", wanted="a"),
        Row(model="b", state="cold", wanted="b"),
    ]
    assert ["+ a", "x b"] == [line[:3] for line in status_lines(rows, plain=True)[1:]]


# Where there is no server to ask


@pytest.mark.parametrize("command", [["status"], ["unload", "mistral"], ["cache-key", "--digests", "mistral"]])  # fmt: skip
def test_no_server_is_told_soon_and_without_a_traceback(
    ollama: Emulator, command: list[str]
) -> None:
    ollama.stop()
    run = Run(*command, "--wait=0.1")
    assert (1, "") == (run.ret, run.out)
    assert [
        f"ollama: no Ollama at {ollama.url} (from OLLAMA_HOST): connection refused for 0.1 s. "
        "Start it with 'ollama serve', or set --ollama-host."
    ] == run.err.splitlines()


def test_no_server_is_a_document_too(ollama: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    ollama.stop()
    assert 1 == main(["status", "--json", "--wait=0"])
    told = json.loads(capsys.readouterr().out)
    assert ([], True) == (told["models"], "connection refused" in told["error"])


def test_an_answer_that_is_an_error_says_whose_it_is(
    ollama: Emulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def resident(client: Client) -> None:
        ollama.answer_all_with(500, "application/json", '{"error": "no such runner"}')
        client.stored()

    monkeypatch.setattr(Client, "resident", resident)
    assert 1 == main(["status"])
    assert (
        f"ollama: {ollama.url} (from OLLAMA_HOST) answers with an error: "
        "/api/tags: HTTP 500: no such runner. Its log may say why.\n"
    ) == capsys.readouterr().err


def test_nobody_waits_long_for_a_look_in_ci_either(
    ollama: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    ollama.stop()
    assert 1 == main(["status"])
    assert "connection refused for 2 s." in capsys.readouterr().err


def test_ctrl_c_in_a_wait_leaves_without_a_word_more(ollama: Emulator) -> None:
    ollama.stop()
    process = start("status", "--wait=60")
    assert process.stderr is not None
    assert "waiting for http" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ("", "") == process.communicate(timeout=BOUND_S)
    assert 130 == process.returncode


# unload


def test_what_is_named_is_unloaded_and_nothing_else(client: Client) -> None:
    load(client, NAME)
    load(client, "mistral")
    run = Run("unload", "mistral", "gone")
    assert (0, "") == (run.ret, run.err)
    assert [
        f"ollama: {client.host.url} (from OLLAMA_HOST), "
        "unload mistral gone (from the command line)",
        "✓ mistral:latest   unloaded            4.1 GB",
        "✓ gone:latest      was not in memory",
    ] == run.lines
    assert [NAME] == [one.name for one in client.resident()]


def test_all_is_all(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, NAME)
    load(client, "mistral")
    assert 0 == main(["unload", "--all"])
    assert 2 == capsys.readouterr().out.count("unloaded")
    assert [] == client.resident()
    assert 0 == main(["unload", "--all"])
    assert "ollama: no model is in memory" in capsys.readouterr().out


def test_all_is_not_what_the_environment_lists(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(client, "mistral")
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", NAME)
    assert 0 == main(["unload"])
    assert ["mistral:latest"] == [one.name for one in client.resident()]
    capsys.readouterr()
    assert 0 == main(["unload", "--all"])
    assert [] == client.resident()
    said = f"ollama: {client.host.url} (from OLLAMA_HOST), unload all\n"
    assert capsys.readouterr().out.startswith(said)


def test_another_name_unloads_too(ollama: Emulator, client: Client) -> None:
    load(client, "mistral")
    (resident,) = client.resident()
    ollama.add(ScriptedModel("chat:a", present=True, digest=resident.digest))
    assert 0 == main(["unload", "chat:a"])
    assert [] == client.resident()


def test_unloads_as_json(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    load(client, "mistral")
    assert 0 == main(["unload", "--json", "mistral", NAME])
    assert [
        {"model": "mistral:latest", "state": "unloaded", "size": 4_100_000_000},
        {"model": NAME, "state": "cold", "size": 0},
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
    until(lambda: not client.resident())


@pytest.mark.usefixtures("at_work")
def test_one_that_is_at_work_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["unload", "mistral"])
    assert "✓ mistral:latest   unloaded   4.1 GB\n" in capsys.readouterr().out


@pytest.mark.usefixtures("at_work")
def test_one_that_stays_at_work_is_told_and_goes_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytest_ollama_warmup.commands.UNLOAD_LIMIT_S", 0.0)
    assert 1 == main(["unload", "mistral"])
    out = capsys.readouterr().out
    assert "✗ mistral:latest   in use, goes when its requests are over\n" in out
    assert 1 == main(["unload", "mistral", "--json"])
    assert ["in use"] == [one["state"] for one in json.loads(capsys.readouterr().out)["models"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unload"], "ollama-warmup unload: error: no model is named: name some, or list them in OLLAMA_PRELOAD_MODELS, or --all for all that are in memory"),
        (["unload", "--all", "mistral"], "ollama-warmup unload: error: SPECS and --all: give one of them"),
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
