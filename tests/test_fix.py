"""docs/fix.md has every error and every finding, in its words, each under an anchor."""

from __future__ import annotations

import ast
import re
from pathlib import Path
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
    NoModelNamed,
    NotOllama,
    NotPulled,
    OllamaNotFound,
    OtherDigest,
    ParameterWithoutIndirect,
    ProxyAnswered,
    PullFailed,
    ServerStartFailed,
    ServerUnreachable,
    TlsFailed,
    UnknownModel,
    WaitedTooLong,
    WarmupError,
)
from pytest_ollama_warmup.report import findings
from pytest_ollama_warmup.session.mark_names import MARK
from pytest_ollama_warmup.warmup.pull import RUN_AGAIN
from pytest_ollama_warmup.warmup.still_loaded import CannotLook
from pytest_ollama_warmup.warmup.usage import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.errors import Cause as FailureCause

PAGE = (Path(__file__).parents[1] / "docs" / "fix.md").read_text("utf-8")
URL = "http://127.0.0.1:11434"
GPU = "http://gpu-box:11434"
OWN = "http://127.0.0.1:24711"
LLAMA = "llama3.2:1b"
LISTED = "from --ollama-preload"

# Where each kind of error is explained.
ANCHORS: dict[type[WarmupError], str] = {
    Aborted: "aborted",
    AccessDenied: "access-denied",
    ApiError: "api-error",
    BadHost: "bad-host",
    BadMark: "bad-mark",
    BadSetting: "bad-setting",
    BadSpec: "bad-spec",
    CannotAsk: "cannot-ask",
    CannotLook: "cannot-look",
    Conflict: "conflict",
    LacksCapability: "lacks-capability",
    LoadFailed: "load-failed",
    MissingVariable: "missing-variable",
    NoModelNamed: "no-model-named",
    NotOllama: "not-ollama",
    NotPulled: "not-pulled",
    OllamaNotFound: "ollama-not-found",
    OtherDigest: "other-digest",
    ParameterWithoutIndirect: "parameter-without-indirect",
    ProxyAnswered: "proxy-answered",
    PullFailed: "pull-failed",
    ServerStartFailed: "server-start-failed",
    ServerUnreachable: "server-unreachable",
    TlsFailed: "tls-failed",
    UnknownModel: "unknown-model",
    WaitedTooLong: "waited-too-long",
}
# And these causes, which change what to do.
BY_CAUSE = {"gateway": "gateway-answered", "port taken": "port-taken"}
# These only say what others have in common.
BASES = {"WarmupError", "ServerError", "ModelError"}

SHOWN = [
    ServerUnreachable(URL, "default", "connection refused", 0.3),
    NotOllama("http://localhost:8080", "OLLAMA_HOST", '404 text/html "Sign in"', ""),
    ProxyAnswered(GPU, "OLLAMA_HOST", 407, "HTTP_PROXY"),
    AccessDenied("https://gateway.example:443", "--ollama-host", 401, "unauthorized", "none"),
    TlsFailed(
        "https://gpu-box:11434", "--ollama-host", "certificate refused (self-signed certificate)"
    ),
    CannotAsk(
        URL,
        "default",
        "AssertionError: no network in unit tests",
        "httpx.Client.send (now conftest.no_network)",
    ),
    CannotAsk(URL, "default", "RuntimeError: no sockets in unit tests", ""),
    CannotLook("AssertionError: no network in unit tests"),
    Aborted(URL, "default"),
    OllamaNotFound("ollama", ("PATH", "/usr/local/bin/ollama")),
    ServerStartFailed(
        OWN,
        "--ollama-serve",
        "exit code 1",
        ".pytest_cache/d/ollama-warmup/serve.log",
        ("Error: mkdir /models: read-only file system",),
    ),
    ServerStartFailed(OWN, "--ollama-serve", "port 24711 is taken", "", (), "port taken"),
    NotPulled(LLAMA, ""),
    NotPulled("gpt-oss:120b-cloud", "", True),
    UnknownModel(
        "phi9", "from ollama_preload in pyproject.toml", "pull model manifest: file does not exist"
    ),
    OtherDigest(LLAMA, LISTED, "baf6a787fdff", "c3d4e5f6" * 8),
    LacksCapability("qwen3:0.6b", "", ("vision",), ("completion", "tools")),
    PullFailed(
        LLAMA,
        LISTED,
        "no new byte for 25 s (--ollama-stall), also after 5 resumptions",
        f"The registry sends nothing. {RUN_AGAIN}",
    ),
    LoadFailed(
        "llama3.1:70b",
        "",
        "model requires more system memory (41 GiB) than is available (15 GiB)",
        "Try a smaller tag or num_ctx; loaded now: qwen3:4b.",
    ),
    ApiError("POST /api/show", 500, "invalid file magic"),
    ApiError(
        "POST /api/generate",
        504,
        "HTTP 504 from a gateway before the server, after 60 s",
        "gateway",
        60.0,
    ),
    WaitedTooLong(f"pull of {LLAMA}", 900.0),
    BadSetting("soon", "--ollama-pull", "Valid values: auto, missing, always, never."),
    Conflict("--ollama-serve", "--ollama-host", "starts a server of its own"),
    BadHost("gpu-box:abc", "OLLAMA_HOST", "port 'abc', not a number from 1 to 65535"),
    MissingVariable("X-API-Key", "--ollama-header", "GATEWAY_KEY"),
    BadSpec("num_ctx=1", "--ollama-preload", "expected a whole number of at least 16"),
    BadMark(
        f'models are given without model=: requires_model("{LLAMA}")',
        "test_chat.py::test_greeting",
        MARK,
    ),
    ParameterWithoutIndirect("qwen3:0.6b", "test_chat.py::test_greeting", "ollama_model"),
    NoModelNamed("test_chat.py::test_greeting", "ollama_model", ()),
    NoModelNamed("test_chat.py::test_greeting", "ollama_model", ("chat", "embed")),
]

# Where each cause of a model's absence is explained; the other findings are below.
CAUSES: dict[Cause, str] = {
    "evicted": "evicted",
    "displaced": "displaced",
    "variant": "variant",
    "expired": "expired",
    "restarted": "restarted",
    "unloaded": "unloaded",
    "gone": "gone",
}
# By the function that says it.
FINDINGS = {
    "_reloaded": "stopped-reloading",
    "_contexts": "other-context-length",
    "_variants": "variants",
    "_sharing": "variant",
    "_unlisted": "unlisted",
}


def flat(text: str) -> str:
    """Return *text* without what only a terminal adds: line breaks, arrows, signs."""
    return " ".join(re.sub(r"^ *(?:→|!)|`", " ", text, flags=re.MULTILINE).split())


def section(anchor: str) -> str:
    """Return the text under an anchor, up to the next one."""
    parts = re.split(r"^\(([a-z0-9-]+)\)=\n", PAGE, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert anchor in found, f"docs/fix.md has no ({anchor})="
    return found[anchor]


def kinds(base: type[WarmupError]) -> Iterator[type[WarmupError]]:
    """Yield the kinds of errors in the package below *base*."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("pytest_ollama_warmup."):
            yield kind
            yield from kinds(kind)


def anchor_of(error: WarmupError) -> str:
    """Return where *error* is explained."""
    return BY_CAUSE.get(error.cause) or ANCHORS[type(error)]


def anchors_in_code() -> set[str]:
    """Return the sections that messages of the package name, other than those of errors."""
    named = set[str]()
    for file in Path(errors.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "explained":
                anchor = node.args[1]
                if isinstance(anchor, ast.Constant):
                    named.add(str(anchor.value))
    return named


def test_every_error_has_a_section() -> None:
    explained = {kind.__name__ for kind in ANCHORS}
    assert {kind.__name__ for kind in kinds(WarmupError)} - BASES == explained
    assert {type(one).__name__ for one in SHOWN} == explained


@pytest.mark.parametrize(("kind", "anchor"), ANCHORS.items(), ids=ANCHORS.values())
def test_a_section_is_named_like_its_error(kind: type[WarmupError], anchor: str) -> None:
    assert anchor == re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
    assert section(anchor).startswith("### ")


@pytest.mark.usefixtures("ollama_in_path")
@pytest.mark.parametrize("error", SHOWN, ids=lambda error: type(error).__name__)
def test_a_section_shows_the_message(error: WarmupError) -> None:
    text = error.words if isinstance(error, ApiError) and error.after_s else str(error)
    shown = flat(section(anchor_of(error)))
    for line in text.split("\n"):
        assert flat(line) in shown


# Why a pull or a load failed, in a few words.
WORDS: dict[FailureCause, str] = {
    "registry unreachable": "registry unreachable",
    "disk full": "no space on the disk",
    "registry login": "access refused",
    "stalled": "the download stalled",
    "damaged download": "the download is damaged",
    "out of memory": "not enough memory",
    "gateway": "a gateway answered",
    "server lost": "the server went away",
    "other": "the pull failed",
}


@pytest.mark.parametrize("error", SHOWN, ids=lambda error: type(error).__name__)
def test_a_message_names_its_section(error: WarmupError) -> None:
    first, *others = str(error).split("\n")
    assert first.endswith(f" [{anchor_of(error)}]")
    assert "[" not in "".join(others)
    assert error.message == str(error).replace(f" [{anchor_of(error)}]", "")


# What is said in the words of another message, or of nothing that is wrong.
UNNAMED = {"lost"}


def test_messages_name_all_sections_and_no_others() -> None:
    named = {*ANCHORS.values(), *BY_CAUSE.values(), *CAUSES.values(), *anchors_in_code()}
    sections = set(re.findall(r"^\(([a-z0-9-]+)\)=\n### ", PAGE, flags=re.MULTILINE))
    assert sections - UNNAMED == named - {"none-of-several-hosts"}
    section("none-of-several-hosts")


def test_short_forms_lead_to_their_sections() -> None:
    assert list(WORDS.values()) == [PullFailed(LLAMA, "", "", "", one).brief for one in WORDS]
    # Some are short enough as they are.
    briefs = {one.brief: anchor_of(one) for one in SHOWN if one.brief != one.message}
    briefs |= dict.fromkeys(WORDS.values(), "")
    table = section("short-forms")
    assert len(briefs) > 18
    for brief, anchor in briefs.items():
        short = brief if f"`{brief}`" in table else brief.partition(":")[0]
        (row,) = (row for row in table.splitlines() if f"`{short}`" in row)
        assert f"(#{anchor}" in row


def test_every_cause_has_a_section() -> None:
    assert set(get_args(Cause)) == set(CAUSES)
    for anchor in (*CAUSES.values(), *FINDINGS.values()):
        assert section(anchor).startswith("### ")


def sentences(source: str) -> Iterator[str]:
    """Yield the parts of three words or more that *source* puts messages together from."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in docstrings:
            text = str(node.value)
            if len(re.findall(r"\w+", text)) >= 3:
                yield from (part for part in text.split("\n") if part.strip())


def test_every_sentence_of_the_findings_is_on_the_page() -> None:
    source = Path(findings.__file__).read_text("utf-8")
    shown = flat(PAGE)
    parts = [flat(part).strip(" .,:;()") for part in sentences(source)]
    assert len(parts) > 20
    assert [] == [part for part in parts if part not in shown]


def test_every_finding_is_one_that_has_a_section() -> None:
    tree = ast.parse(Path(findings.__file__).read_text("utf-8"))
    (body,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "findings"
    )
    calls = {
        node.func.id
        for node in ast.walk(body)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert set(FINDINGS) == {name for name in calls if name.startswith("_")}


def test_links_to_anchors_of_this_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert len(links) > 5
    for anchor in links:
        section(anchor)
    anchors = re.findall(r"^\(([a-z0-9-]+)\)=$", PAGE, re.MULTILINE)
    assert len(set(anchors)) == len(anchors)
