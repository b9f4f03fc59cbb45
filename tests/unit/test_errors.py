"""Each error: what, where, why; then what to do."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, get_args

import pytest

from pytest_ollama_warmup import errors
from pytest_ollama_warmup.errors import (
    Aborted,
    AccessDenied,
    ApiError,
    BadHost,
    BadMark,
    BadSetting,
    BadSpec,
    CannotAsk,
    Conflict,
    LacksCapability,
    LoadFailed,
    MissingVariable,
    ModelError,
    NoModelNamed,
    NotOllama,
    NotPulled,
    OllamaNotFound,
    OtherDigest,
    ParameterWithoutIndirect,
    ProxyAnswered,
    PullFailed,
    ServerError,
    ServerStartFailed,
    ServerUnreachable,
    TlsFailed,
    UnknownModel,
    WaitedTooLong,
    WarmupError,
)
from pytest_ollama_warmup.errors.base import OfModel, OfServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_ollama_warmup.errors import Cause, NoAnswer

URL = "http://127.0.0.1:11434"
EACH = [
    BadSetting("soon", "--ollama-pull", "Valid values: auto, missing, always, never."),
    Conflict("--ollama-serve", "--ollama-host", "starts a server of its own"),
    BadHost("h:abc", "OLLAMA_HOST", "port 'abc', not a number from 1 to 65535"),
    BadSpec("num_ctx=1", "--ollama-preload", "expected a whole number of at least 16"),
    BadMark("options is a dict", "a.py::test_b", "requires_model(*specs)"),
    NoModelNamed("a.py::test_b", "ollama_model", ("chat", "embed")),
    ServerUnreachable(URL, "default", "connection refused", 2.0),
    NotOllama(URL, "OLLAMA_HOST", "404 text/plain", ""),
    ProxyAnswered("http://ollama:11434", "OLLAMA_HOST", 407, "HTTP_PROXY"),
    AccessDenied(URL, "OLLAMA_HOST", 401, "unauthorized", "sent"),
    Aborted(URL, "default"),
    CannotAsk(URL, "default", "AssertionError: no", "httpx.Client.send (now a.b)"),
    CannotAsk(URL, "default", "RuntimeError: no sockets", ""),
    OllamaNotFound("ollama", ("PATH", "/usr/local/bin/ollama")),
    ServerStartFailed(URL, "--ollama-serve", "exit code 1", "/tmp/serve.log", ("Error: mkdir",)),
    ServerStartFailed(URL, "--ollama-serve", "port 11434 is taken", "", (), "port taken"),
    TlsFailed("https://h:443", "--ollama-host", "certificate refused (self-signed)"),
    NotPulled("llama3.2:1b", "from --ollama-preload", True),
    UnknownModel("phi9", "from x", "pull model manifest: file does not exist"),
    ParameterWithoutIndirect("m", "a.py::test_a", "ollama_model"),
    OtherDigest("m", "from x", "0a109f42", "c3d4" * 16),
    LacksCapability("m", "from x", ("tools", "vision"), ("completion",)),
    PullFailed("m", "from x", "max retries exceeded: EOF", "Run again."),
    LoadFailed("m", "from x", "out of memory", "Try a smaller tag."),
    ApiError("POST /api/show", 500, "invalid file magic"),
    WaitedTooLong("m", 900.0),
    MissingVariable("X-Gate", "--ollama-header", "GATE_KEY"),
]


def _concrete(kind: type[WarmupError]) -> Iterator[type[WarmupError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _concrete(one)


def test_every_error_has_an_example_here() -> None:
    bases: set[type[WarmupError]] = {ServerError, ModelError}
    ours = {kind for kind in _concrete(WarmupError) if kind.__module__.startswith(errors.__name__)}
    assert ours - bases == {type(one) for one in EACH}


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_process_border(error: WarmupError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(error) is type(copy)
    assert str(error) == str(copy)
    assert error.brief == copy.brief
    assert vars(error) == vars(copy)


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_an_error_names_all_that_it_was_given(error: WarmupError) -> None:
    hidden = ("sent", "from x", error.cause)
    texts = [one for one in error.args if isinstance(one, str) and one not in hidden]
    assert texts or isinstance(error, WaitedTooLong)
    for text in texts:
        # Of a test only its name is said.
        assert text.rpartition("::")[2] in error.message or text in error.message


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_the_tree_is_drawn_at_the_top_of_the_module(error: WarmupError) -> None:
    assert type(error).__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", [BadSetting, BadHost, BadSpec, BadMark])
def test_what_a_user_gave_wrong_is_a_value_error(kind: type[BadSetting]) -> None:
    assert issubclass(kind, ValueError)
    assert issubclass(kind, WarmupError)


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_fields_may_be_given_by_name(error: WarmupError) -> None:
    copy = type(error)(**vars(error))
    assert error.args == copy.args
    assert str(error) == str(copy)


def test_fields_are_those_of_the_base_and_then_its_own() -> None:
    error = NotPulled("m", "from x", meant="n")
    fields = {"model": "m", "origin": "from x", "cloud": False, "meant": "n"}
    fields |= {"alias": "", "never": False}
    assert tuple(fields.values()) == error.args
    assert fields == vars(error)


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_an_error_has_its_cause_and_who_failed_as_values(error: WarmupError) -> None:
    literals = [OfServer, OfModel]
    assert error.cause in {one for each in literals for one in _values(each)}
    assert ("server" == error.failed_by) == (error.cause in _values(OfServer))
    assert "server" == error.failed_by or not isinstance(error, ServerError)


def _values(literal: object) -> set[str]:
    values = get_args(literal)
    nested = [_values(one) for one in values if not isinstance(one, str)]
    return {one for one in values if isinstance(one, str)}.union(*nested)


@pytest.mark.parametrize(
    ("cause", "brief"),
    [
        ("registry unreachable", "registry unreachable"),
        ("registry login", "access refused"),
        ("disk full", "no space on the disk"),
        ("stalled", "the download stalled"),
        ("damaged download", "the download is damaged"),
        ("gateway", "a gateway answered"),
        ("server lost", "the server went away"),
        ("other", "the pull failed"),
    ],
)
def test_a_table_shows_the_cause_of_a_pull_whatever_the_words(cause: Cause, brief: str) -> None:
    assert brief == PullFailed("m", "", "no space left, memory, refused", "Run again.", cause).brief


# The messages that users meet in the first week, word for word.


@pytest.mark.usefixtures("ollama_in_path")
def test_no_server_says_for_how_long_and_how_to_start_it() -> None:
    assert (
        "no Ollama at http://127.0.0.1:11434 (the default): connection refused for 2 s.\n"
        "Start it with 'ollama serve', or set --ollama-host."
    ) == ServerUnreachable(URL, "default", "connection refused", 2.0).message
    assert (
        "no Ollama at http://127.0.0.1:11434 (the default): connection lost.\n"
        "Start it with 'ollama serve', or set --ollama-host."
    ) == ServerUnreachable(URL, "default", "connection lost", 0.0).message


def test_no_server_says_where_to_get_ollama_if_none_is_in_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    start = "Start or install it (ollama.com/download), or"
    for source, advice in (
        ("default", "set --ollama-host."),
        ("--ollama-host", "fix --ollama-host."),
    ):
        said = ServerUnreachable(URL, source, "connection refused", 2.0).message
        assert f"{start} {advice}" == said.splitlines()[1]


@pytest.mark.parametrize("cause", ["connection refused", "no connection"])
def test_no_server_on_a_port_that_nobody_gave_says_which_one_that_is(cause: NoAnswer) -> None:
    note = "http:// without a port means port 80; Ollama listens on 11434"
    error = ServerUnreachable("http://127.0.0.1:80", "OLLAMA_HOST", cause, 2.0, note)
    assert f"no Ollama at http://127.0.0.1:80 (from OLLAMA_HOST): {cause} for 2 s.\n{note}." == (
        error.message
    )


@pytest.mark.usefixtures("ollama_in_path")
def test_the_advice_follows_the_cause_and_not_its_words() -> None:
    url, words = "http://ollama:11434", "HTTP 502 from the proxy of HTTP_PROXY"
    unreachable = ServerUnreachable(url, "OLLAMA_HOST", "proxy", 0.0, words=words)
    assert (
        f"no Ollama at {url} (from OLLAMA_HOST): {words}.\n"
        "If the server needs no proxy, add ollama to NO_PROXY."
    ) == unreachable.message
    setting = ServerUnreachable(url, "OLLAMA_HOST", "proxy setting", 0.0, words="no SOCKS")
    assert setting.message.endswith("no SOCKS.\nFix it, or name the host in NO_PROXY.")
    other = ServerUnreachable(url, "OLLAMA_HOST", "no server", 0.0, words=words)
    assert other.message.endswith(f"{words}.\nStart it with 'ollama serve', or set --ollama-host.")
    assert f"no Ollama: {words}" == other.brief


def test_a_missing_model_says_who_lists_it_and_how_to_pull_it() -> None:
    how = "Run 'ollama pull llama3.2:1b', or pytest with --ollama-pull=missing."
    assert f"llama3.2:1b is not pulled.\n{how}" == NotPulled("llama3.2:1b", "").message
    assert f"llama3.2:1b (from OLLAMA_PRELOAD_MODELS) is not pulled.\n{how}" == (
        NotPulled("llama3.2:1b", "from OLLAMA_PRELOAD_MODELS").message
    )


@pytest.mark.parametrize(
    ("meant", "words"),
    [
        ("", "Did you mean llama3.2:1b? Ollama does not know the prefix ollama_chat/."),
        ("llama3.2:3b", "Did you mean llama3.2:3b, which is there?"),
    ],
)
def test_a_name_with_the_prefix_of_a_client_library_is_one_without(meant: str, words: str) -> None:
    name, origin = "ollama_chat/llama3.2:1b", "from --ollama-preload"
    assert f". {words}\n" in NotPulled(name, origin, meant=meant).message
    assert f". {words}\n" in UnknownModel(name, origin, "no", meant).message


@pytest.mark.parametrize(
    ("meant", "alias"), [("llama3.2:1b", ""), ("", "lama"), ("llama3.2:1b", "lama")]
)
def test_a_name_that_is_a_slip_is_to_be_corrected(meant: str, alias: str) -> None:
    for error in (
        NotPulled("lama2", "", meant=meant, alias=alias),
        UnknownModel("lama2", "", "no", meant, alias),
    ):
        what, cure = error.message.split("\n")
        assert what.endswith(f" {alias or 'llama3.2:1b, which is there'}?")
        assert cure.startswith("Correct the name")
        assert bool(alias) == ("--ollama-alias" not in cure)


def test_a_missing_cloud_model_is_never_to_be_pulled() -> None:
    said = NotPulled("m:cloud", "from --ollama-preload", True).message
    assert "'ollama signin'" in said
    assert "never pulled" in said
    assert "ollama pull" not in said


def test_a_model_that_does_not_exist_says_who_named_it() -> None:
    words, origin = (
        "pull model manifest: file does not exist",
        "from ollama_preload in pyproject.toml",
    )
    assert (
        "phi9 (from ollama_preload in pyproject.toml): the registry has no such model "
        "(pull model manifest: file does not exist).\nCheck name and tag; "
        "for an alias add --ollama-alias phi9=MODEL."
    ) == UnknownModel("phi9", origin, words).message


def test_a_test_that_names_no_model_is_told_how() -> None:
    assert (
        "test_rag uses ollama_model without naming a model, and 3 are listed (chat, embed, vision). "
        'Add @pytest.mark.requires_model("chat"), or use ollama_models["chat"].name.'
    ) == NoModelNamed(
        "tests/a.py::C::test_rag", "ollama_model", ("chat", "embed", "vision")
    ).message
    assert (
        "test_rag uses ollama_model without naming a model, and no model is listed. "
        'Add @pytest.mark.requires_model("MODEL"), or run with --ollama-preload MODEL.'
    ) == NoModelNamed("a.py::test_rag", "ollama_model", ()).message


def test_a_model_that_does_not_load_repeats_the_servers_words() -> None:
    words = "model requires more system memory (41 GiB) than is available (15 GiB)"
    advice = "Try a smaller tag or num_ctx; loaded now: qwen3:4b."
    assert (
        'llama3.1:70b does not load: "model requires more system memory (41 GiB) than is available '
        '(15 GiB)".\nTry a smaller tag or num_ctx; loaded now: qwen3:4b.'
    ) == LoadFailed("llama3.1:70b", "from x", words, advice).message


def test_another_service_at_the_address_is_described() -> None:
    seen, note = '200 text/html "Sign in"', "http:// without a port means port 80"
    assert (
        "http://127.0.0.1:11434 (from OLLAMA_HOST) answers, but is not Ollama "
        '(GET /api/version: 200 text/html "Sign in"). Another service?\n'
        "Note: http:// without a port means port 80."
    ) == NotOllama(URL, "OLLAMA_HOST", seen, note).message
    assert NotOllama(URL, "OLLAMA_HOST", seen, "").message.endswith(
        "Another service?\nSet --ollama-host."
    )
    assert "but is not Ollama (GET /api/ps: more than" in str(
        NotOllama(URL, "OLLAMA_HOST", "more than 8.0 MB", "", "GET /api/ps")
    )


@pytest.mark.parametrize("cause", ["no answer", "no complete answer", "connection refused"])
def test_a_server_that_lets_wait_is_known(cause: NoAnswer) -> None:
    assert (cause != "connection refused") == ServerUnreachable(URL, "", cause, 0.0).timed_out


@pytest.mark.parametrize(
    ("status", "words", "key", "said"),
    [
        (
            401,
            "no",
            "sent",
            '(HTTP 401 "no").\nThe server does not accept the key in OLLAMA_API_KEY.',
        ),
        (403, "no", "sent", '(HTTP 403 "no").\nThe server does not accept the key'),
        (401, "", "withheld", "(HTTP 401).\nOLLAMA_API_KEY was not sent: it goes to https and"),
        (401, "", "unusable", "(HTTP 401).\nOLLAMA_API_KEY was not sent: it is not plain ASCII"),
        (
            401,
            "",
            "none",
            "(HTTP 401).\nSet OLLAMA_API_KEY if it wants a key, write USER:PASSWORD@",
        ),
        (401, "", "login", "(HTTP 401).\nThe server does not accept the user and password in the"),
        (403, "no", "header", '(HTTP 403 "no").\nThe server does not accept what --ollama-header'),
        (403, "", "none", "(HTTP 403).\nAn Ollama bound to loopback answers so to a host name"),
        (403, "", "sent", "(HTTP 403).\nAn Ollama bound to loopback answers so to a host name"),
    ],
)
def test_refused_access_says_what_became_of_the_key(
    status: int, words: str, key: str, said: str
) -> None:
    error = AccessDenied("http://h:1", "OLLAMA_HOST", status, words, key)
    assert f"http://h:1 (from OLLAMA_HOST) refuses access {said}" in error.message


def test_a_bad_value_is_quoted_without_what_could_repaint_a_terminal() -> None:
    assert BadSetting("\x1b[31msoon\n", "--ollama-pull", "x").message.startswith(
        "'soon' is not a valid --ollama-pull."
    )


def test_the_target_of_an_alias_is_not_taken_for_an_alias() -> None:
    error = errors.UnknownModel("typo", "from --ollama-alias", "file does not exist")
    assert error.message.endswith("Check name and tag.")
