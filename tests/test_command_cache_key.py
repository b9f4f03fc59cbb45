"""``ollama-warmup cache-key``."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.command import Run
from tests.conftest import LLAMA

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.client import Client

NAME = "llama3.2:1b"
MISTRAL = ScriptedModel("mistral:latest")


@pytest.fixture(autouse=True)
def _usual_server(ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.add(MISTRAL)
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)


class Keys:
    """Prints keys, and reads them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        assert 0 == main(["cache-key", *arguments])
        out, err = self._capsys.readouterr()
        assert "" == err
        assert out.endswith("\n")
        return out[:-1]


@pytest.fixture
def key(capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(capsys)


def test_one_line_and_nothing_else_without_a_word_to_a_server(ollama: Emulator) -> None:
    run = Run("cache-key", "mistral", NAME)
    assert (0, "") == (run.ret, run.err)
    assert re.fullmatch(r"ollama-models-[0-9a-f]{16}\n", run.out)
    assert [] == ollama.requests


def test_the_key_is_the_same_forever(key: Keys) -> None:
    # Another one would empty everybody's caches.
    assert "ollama-models-2ab4a49f78501cda" == key("llama3.2:1b", "nomic-embed-text")


@pytest.mark.parametrize(
    "same",
    [
        ["mistral", NAME],
        [f"{NAME} mistral"],
        [f"mistral,{NAME},mistral:latest"],
        ["Mistral:LATEST", "registry.ollama.ai/library/llama3.2:1b"],
        ["mistral,num_ctx=8192,keep_alive=1h", f"{NAME}?num_gpu=0"],
        ["mistral,insecure=true", NAME],
        ["chat", NAME, "--alias=chat=mistral"],
        ["mistral", NAME, "gpt-oss:120b-cloud"],
        ["mistral", NAME, "--host=gpu-box", "--wait=9"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_what_downloads_the_same_has_the_same_key(key: Keys, same: list[str]) -> None:
    assert key("mistral", NAME) == key(*same)


def test_what_downloads_something_else_has_another_key(key: Keys) -> None:
    pin = f"@sha256:{12 * '0'}"
    others = ["mistral", NAME, f"{NAME} mistral", "mistral:7b", "team/mistral", f"mistral{pin}"]
    assert len(others) == len({key(other) for other in others})


def test_another_version_than_the_pinned_one_has_no_digest(
    ollama: Emulator, client: Client, capsys: pytest.CaptureFixture[str], key: Keys
) -> None:
    ollama.add(replace(MISTRAL, present=True))
    digest = client.local_models()[0].digest
    assert key("--digests", f"mistral@sha256:{digest[:12]}")
    pin = "mistral@sha256:0a109f42"
    assert 1 == main(["cache-key", "--digests", pin])
    assert f"no digest of {pin}" in capsys.readouterr().err


def test_the_key_is_the_same_before_and_after_the_pull(ollama: Emulator, key: Keys) -> None:
    before = key("mistral")
    assert before == key("mistral")
    ollama.add(replace(MISTRAL, present=True))
    assert before == key("mistral")
    ollama.stop()
    assert before == key("mistral")


def test_the_environment_names_what_pull_would_bring(
    key: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "mistral,num_ctx=512")
    monkeypatch.setenv("OLLAMA_MODELS", NAME)
    assert key("mistral", NAME) == key()


# With digests


def test_digests_go_behind_the_key_of_the_names(ollama: Emulator, key: Keys) -> None:
    ollama.add(replace(MISTRAL, present=True))
    ollama.add(replace(LLAMA, present=True))
    names = key(NAME, "mistral")
    first = key("--digests", NAME, "mistral")
    assert re.fullmatch(rf"{names}-[0-9a-f]{{16}}", first)
    assert first == key("--digests", "mistral:latest,num_ctx=64", NAME)


def test_a_tag_that_moves_changes_the_digests_and_not_the_names(
    ollama: Emulator, key: Keys
) -> None:
    ollama.add(replace(MISTRAL, present=True))
    names, before = key("mistral"), key("--digests", "mistral")
    ollama.add(replace(MISTRAL, present=True, digest=64 * "a"))
    after = key("--digests", "mistral")
    assert before != after
    assert all(one.startswith(f"{names}-") for one in (before, after))


def test_digests_of_what_is_not_there_are_none(ollama: Emulator) -> None:
    ollama.add(replace(LLAMA, present=True))
    run = Run("cache-key", "--digests", NAME, "mistral", "phi9,num_ctx=64")
    assert (1, "") == (run.ret, run.out)
    assert (
        f"ollama: no digest of mistral, phi9,num_ctx=64: not on {ollama.url} (from OLLAMA_HOST). "
        "Run 'ollama-warmup pull mistral phi9,num_ctx=64' first, or leave out --digests.\n"
    ) == run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ollama-warmup cache-key: error: no model named. Name one or more, or list them in OLLAMA_PRELOAD_MODELS.\n"),
        (["a", "a,num_ctx=64"], "a is listed twice with different options"),
        (["mistral", "--json"], "unrecognized arguments: --json"),
    ],
)  # fmt: skip
def test_bad_usage_prints_no_key(arguments: list[str], message: str) -> None:
    run = Run("cache-key", *arguments)
    assert (2, "") == (run.ret, run.out)
    assert message in run.err
