"""The parts are what the other live tests take them for: models, registry, server."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tests.live.server as server_module
from tests.live.provide import GEMMA
from tests.live.registry import Faults, Registry, Request
from tests.live.server import RealServer, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.conftest import StartServer
    from tests.live.provide import Provided

SENTENCE = r"\S+ (\S+ ){12}(dusk|noon|dawn|supper)\."
HELLO = [{"role": "user", "content": "hello"}]
# A parser of llama-server keeps only the arguments that the schema names.
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]


# --- models


@pytest.mark.parametrize(
    ("model", "capabilities"),
    [
        ("completion", {"completion"}),
        ("completion-b", {"completion"}),
        ("completion-c", {"completion"}),
        ("completion-d", {"completion"}),
        ("endless", {"completion"}),
        ("big", {"completion"}),
        ("quantised", {"completion"}),
        ("broken", {"completion"}),
        ("agent", {"completion", "tools", "thinking"}),
        ("tools", {"completion", "tools"}),
        ("think", {"completion", "thinking"}),
        ("embed", {"embedding"}),
        ("embed-b", {"embedding"}),
    ],
)
def test_a_model_shows_its_capabilities(
    real_server: RealServer, bring: Callable[[str], str], model: str, capabilities: set[str]
) -> None:
    shown = real_server.post("/api/show", {"model": bring(model)})
    assert capabilities == set(shown["capabilities"])


@pytest.mark.parametrize(
    "model", ["completion", "completion-b", "completion-c", "completion-d", "big", "quantised"]
)
def test_a_completion_model_writes_one_sentence(
    real_server: RealServer, bring: Callable[[str], str], model: str
) -> None:
    name = bring(model)
    answer = _generate(real_server, name)
    assert re.fullmatch(SENTENCE, answer["response"])
    assert (answer["done_reason"], answer["eval_count"]) == ("stop", 15)
    assert answer["response"] == _generate(real_server, name)["response"]


def test_gemma_in_4_bits_generates_text(
    own_registry: Registry, start_server: StartServer, parts: Provided
) -> None:
    weights = parts.models.parent / GEMMA / "gemma.gguf"
    if not weights.exists():
        pytest.skip("no Gemma 3 270M: python tests/live/provide.py --gemma")
    own_registry.add("gemma", weights)
    server = start_server()
    server.pull(own_registry.name("gemma"))
    shown = server.post("/api/show", {"model": own_registry.name("gemma")})
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    answer = _generate(server, own_registry.name("gemma"), num_predict=8)
    assert answer["response"].strip()
    assert answer["eval_count"] > 1


def test_an_endless_model_stops_only_at_its_limit(
    real_server: RealServer, bring: Callable[[str], str]
) -> None:
    answer = _generate(real_server, bring("endless"), num_predict=100)
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 100)


@pytest.mark.parametrize("model", ["agent", "tools"])
def test_a_model_with_tools_calls_one_and_then_answers(
    real_server: RealServer, bring: Callable[[str], str], model: str
) -> None:
    name = bring(model)
    called = _chat(real_server, name, HELLO, tools=WEATHER)
    function = called["tool_calls"][0]["function"]
    assert (function["name"], function["arguments"]) == ("get_weather", {"city": "Paris"})

    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny"}
    answer = _chat(real_server, name, [*HELLO, called, result], tools=WEATHER)
    assert re.fullmatch(SENTENCE, answer["content"])
    assert "tool_calls" not in answer


@pytest.mark.parametrize("model", ["agent", "think"])
def test_a_thinking_model_thinks_unless_told_not_to(
    real_server: RealServer, bring: Callable[[str], str], model: str
) -> None:
    name = bring(model)
    thought = _chat(real_server, name, HELLO, think=True)
    assert thought["thinking"].strip() == "Let me think."
    assert re.fullmatch(SENTENCE, thought["content"])

    plain = _chat(real_server, name, HELLO, think=False)
    assert "thinking" not in plain
    assert re.fullmatch(SENTENCE, plain["content"])


@pytest.mark.parametrize("model", ["embed", "embed-b"])
def test_an_embedding_model_puts_like_texts_together(
    real_server: RealServer, bring: Callable[[str], str], model: str
) -> None:
    texts = ["hello world", "hello world", "hello word", "zebra!"]
    answer = real_server.post("/api/embed", {"model": bring(model), "input": texts})
    same, again, like, unlike = answer["embeddings"]
    assert len(same) == 64
    assert pytest.approx(math.hypot(*same), abs=1e-4) == 1.0
    assert pytest.approx(_dot(same, again), abs=1e-4) == 1.0
    assert _dot(same, like) > _dot(same, unlike)


def test_a_loaded_model_has_a_size_and_none_of_it_on_a_gpu(
    real_server: RealServer, bring: Callable[[str], str]
) -> None:
    name = bring("completion")
    _generate(real_server, name)
    [model] = [m for m in real_server.get("/api/ps")["models"] if m["name"] == name]
    assert model["size"] > 1_000_000
    assert (model["size_vram"], model["context_length"]) == (0, 4096)


def test_a_broken_model_pulls_and_then_does_not_load(
    real_server: RealServer, bring: Callable[[str], str]
) -> None:
    with pytest.raises(Refused, match=r"output_norm\.weight.* not found") as refused:
        _generate(real_server, bring("broken"))
    assert refused.value.status == 500


def test_a_cut_model_pulls_and_then_cannot_even_be_shown(
    real_server: RealServer, bring: Callable[[str], str]
) -> None:
    with pytest.raises(Refused, match="exceeds file size") as refused:
        real_server.post("/api/show", {"model": bring("broken-cut")})
    assert refused.value.status == 500


def test_no_two_models_have_the_same_weights(parts: Provided) -> None:
    contents = [path.read_bytes() for path in parts.models.glob("*.gguf")]
    assert 14 == len(contents) == len(set(contents))


def test_the_big_model_is_35_megabytes(parts: Provided) -> None:
    assert (parts.models / "big.gguf").stat().st_size // 1_000_000 == 35


# --- registry


def test_a_pull_asks_for_the_manifest_and_each_blob_once(
    own_registry: Registry, start_server: StartServer
) -> None:
    server = start_server()
    server.pull(own_registry.name("completion"))
    manifest, *blobs = own_registry.requests
    assert (manifest.method, manifest.path) == ("GET", "/v2/t/completion/manifests/latest")
    # Weights, params, config; for each its size, where it is, its bytes.
    assert [(request.method, request.range is not None) for request in blobs] == [
        ("HEAD", False),
        ("GET", False),
        ("GET", True),
    ] * 3

    own_registry.forget()
    server.pull(own_registry.name("completion"))
    assert [manifest] == own_registry.requests


def test_a_model_can_be_served_under_another_name_and_tag(
    own_registry: Registry, start_server: StartServer, parts: Provided
) -> None:
    server = start_server()
    own_registry.add("mine", parts.models / "completion-b.gguf")
    for name in (own_registry.name("mine", "v1"), own_registry.name("completion-b")):
        server.pull(name)
    digests = {model["digest"] for model in server.get("/api/tags")["models"]}
    assert len(digests) == 1


def test_the_rate_can_be_changed_while_a_pull_runs(
    own_registry: Registry, start_server: StartServer, parts: Provided, threads: ThreadPoolExecutor
) -> None:
    size = (parts.models / "big.gguf").stat().st_size
    own_registry.rate = 1_000_000
    pull = threads.submit(start_server().pull, own_registry.name("big"))
    download = _download(own_registry)
    _wait(lambda: download.sent > 0)
    assert not pull.done()
    assert download.sent < size / 2
    own_registry.rate = None
    pull.result(60)
    assert size == download.sent


def test_a_throttled_pull_is_not_faster_than_its_rate(
    own_registry: Registry, start_server: StartServer, parts: Provided
) -> None:
    server = start_server()
    own_registry.rate = 50_000_000
    began = time.monotonic()
    server.pull(own_registry.name("big"))
    least = (parts.models / "big.gguf").stat().st_size / own_registry.rate
    assert time.monotonic() - began >= least


def test_each_download_can_have_a_rate_of_its_own(
    own_registry: Registry, start_server: StartServer
) -> None:
    own_registry.rate_each = 2e6
    began = time.monotonic()
    start_server().pull(own_registry.name("completion"))
    assert time.monotonic() - began >= 0.8


def test_a_stalled_pull_goes_on_when_the_stall_is_taken_back(
    own_registry: Registry, start_server: StartServer, threads: ThreadPoolExecutor
) -> None:
    own_registry.faults.stall_at = 1_000_000
    pull = threads.submit(start_server().pull, own_registry.name("completion"))
    download = _download(own_registry)
    _wait(lambda: download.sent == 1_000_000)
    assert not pull.done()
    own_registry.faults.stall_at = None
    pull.result(60)
    # Weights, params, config: Ollama did not have to ask again, as it does after 30 s.
    assert _range_starts(own_registry) == [0, 0, 0]


def test_a_stall_can_end_by_itself(own_registry: Registry, start_server: StartServer) -> None:
    server = start_server()
    own_registry.faults = Faults(stall_at=1_000_000, stall_s=0.5)
    began = time.monotonic()
    server.pull(own_registry.name("completion"))
    assert time.monotonic() - began >= 0.5


def test_a_pull_given_up_in_a_stall_is_resumed_behind_its_start(
    own_registry: Registry, start_server: StartServer
) -> None:
    server = start_server()
    own_registry.faults.stall_at = 8_000_000
    with pytest.raises(TimeoutError):
        server.pull(own_registry.name("big"), limit_s=2)
    own_registry.faults = Faults()
    own_registry.forget()
    server.pull(own_registry.name("big"))
    assert _range_starts(own_registry)[0] > 0


def test_a_connection_stalls_after_so_many_bytes_and_the_next_one_sends_as_many(
    own_registry: Registry, start_server: StartServer
) -> None:
    server = start_server()
    own_registry.faults.stall_after = 800_000
    for _ in range(2):
        with pytest.raises(TimeoutError):
            _pull_again(server, own_registry.name("completion"), limit_s=1)
    _pull_again(server, own_registry.name("completion"), limit_s=60)
    assert _range_starts(own_registry)[:3] == [0, 800_000, 1_600_000]


def _pull_again(server: RealServer, name: str, limit_s: float) -> None:
    """Pull; one that joins another which is just being cut is cut with it, and comes again."""
    for _ in range(100):
        try:
            server.pull(name, limit_s=limit_s)
            return
        except Refused as exc:
            if "context canceled" not in exc.text:
                raise
            time.sleep(0.05)
    raise AssertionError("cut again and again")


def test_a_registry_closes_in_the_midst_of_a_stall(
    parts: Provided, start_server: StartServer, threads: ThreadPoolExecutor
) -> None:
    server = start_server()
    with Registry(parts.models) as registry:
        registry.faults.stall_at = 1_000_000
        pull = threads.submit(server.pull, registry.name("completion"))
        _download(registry)
    server.stop()
    assert isinstance(pull.exception(60), (OSError, Refused))


def test_a_dropped_download_is_taken_up_where_it_was_cut(
    own_registry: Registry, start_server: StartServer
) -> None:
    own_registry.faults = Faults(drop_at=1_000_000, drops=1)
    start_server().pull(own_registry.name("completion"))
    assert _range_starts(own_registry)[:2] == [0, 1_000_000]
    assert own_registry.faults.drops == 0


def test_a_busy_registry_answers_503_as_often_as_told(
    own_registry: Registry, start_server: StartServer
) -> None:
    server = start_server()
    own_registry.faults.unavailable = 2
    for _ in range(2):
        with pytest.raises(Refused, match="pull model manifest: 503: the registry is busy"):
            server.pull(own_registry.name("completion"))
    server.pull(own_registry.name("completion"))


@pytest.mark.parametrize(
    ("faults", "model", "text"),
    [
        (Faults(), "nobody-pushed-this", "pull model manifest: file does not exist"),
        (Faults(unknown=True), "completion", "pull model manifest: file does not exist"),
        (Faults(unauthorized=True), "completion", "unauthorized: access denied"),
        (Faults(wrong_bytes=1), "completion", "digest mismatch, file must be downloaded again"),
    ],
    ids=["no such model", "unknown", "unauthorized", "wrong bytes"],
)
def test_a_pull_fails_with_the_words_of_ollama_until_the_fault_is_gone(
    own_registry: Registry, start_server: StartServer, faults: Faults, model: str, text: str
) -> None:
    server = start_server()
    own_registry.faults = faults
    with pytest.raises(Refused, match=text):
        server.pull(own_registry.name(model))
    own_registry.faults = Faults()
    server.pull(own_registry.name("completion"))


def test_a_slow_manifest_holds_up_the_download(
    own_registry: Registry, start_server: StartServer
) -> None:
    own_registry.faults.manifest_s = 0.5
    began = time.monotonic()
    start_server().pull(own_registry.name("completion"))
    assert time.monotonic() - began >= 0.5


def test_a_slow_head_holds_up_the_download(
    own_registry: Registry, start_server: StartServer, threads: ThreadPoolExecutor
) -> None:
    own_registry.faults.head_s = 1.0
    pull = threads.submit(start_server().pull, own_registry.name("completion"))
    _wait(lambda: any(request.method == "HEAD" for request in own_registry.requests))
    assert _range_starts(own_registry) == []
    own_registry.faults.head_s = 0.0
    pull.result(60)


def test_the_registry_runs_from_the_command_line(parts: Provided) -> None:
    command = [sys.executable, "-m", "tests.live.registry", str(parts.models)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}/v2/t/completion/manifests/latest"
        with server_module.OPENER.open(urllib.request.Request(url), timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


# --- server


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_leaves_no_process_behind(
    registry: Registry, start_server: StartServer, how: str
) -> None:
    server = start_server()
    server.pull(registry.name("completion"))
    _generate(server, registry.name("completion"))
    pids = server.processes()
    assert server.pid in pids
    assert len(pids) == 2
    getattr(server, how)()
    assert server.processes() == []
    assert not [pid for pid in pids if _runs(pid)]


def test_a_server_restarts_with_its_address_models_and_log(
    registry: Registry, start_server: StartServer
) -> None:
    server = start_server()
    server.pull(registry.name("embed"))
    url, pid, log = server.url, server.pid, server.log_text()
    server.kill()
    with pytest.raises(OSError, match="refused"):
        server.get("/api/version")
    server.restart()
    assert url == server.url
    assert pid != server.pid
    assert server.log_text().startswith(log)
    assert [registry.name("embed")] == [m["name"] for m in server.get("/api/tags")["models"]]


def test_a_server_gets_its_own_variables_and_no_others_of_ollama(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "77")
    log = start_server(OLLAMA_MAX_LOADED_MODELS="2").log_text()
    assert "OLLAMA_MAX_LOADED_MODELS:2 " in log
    assert "OLLAMA_MAX_QUEUE:77" not in log


def test_a_proxy_does_not_stand_between_us_and_the_server(
    real_server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "version" in real_server.get("/api/version")


@pytest.mark.parametrize("model", ["completion", "embed"])
def test_unload_takes_a_model_out_of_memory(
    real_server: RealServer, bring: Callable[[str], str], model: str
) -> None:
    name = bring(model)
    real_server.post("/api/embed", {"model": name})
    assert name in real_server.loaded()
    real_server.unload(name)
    assert name not in real_server.loaded()


def test_a_port_that_was_taken_meanwhile_is_given_up(
    real_server: RealServer, parts: Provided, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([real_server.port, server_module.free_port()])
    monkeypatch.setattr(server_module, "free_port", lambda: next(ports))
    with RealServer(parts.ollama) as server:
        assert real_server.port != server.port
        assert server.processes()


def test_a_server_that_does_not_start_says_why(parts: Provided) -> None:
    server = RealServer(parts.ollama, env={"OLLAMA_HOST": "192.0.2.1:1"})
    with pytest.raises(RuntimeError, match="cannot assign requested address"), server:
        pass
    assert server.processes() == []


# --- helpers


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """One thread beside that of the test; what it does must end by itself."""
    with ThreadPoolExecutor(1) as threads:
        yield threads


def _generate(server: RealServer, name: str, **options: Any) -> dict[str, Any]:
    options = {"temperature": 0, **options}
    body = {"model": name, "prompt": "hello", "stream": False, "options": options}
    answer: dict[str, Any] = server.post("/api/generate", body)
    return answer


def _chat(
    server: RealServer, name: str, messages: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    body = {"model": name, "messages": messages, "stream": False, **more}
    message: dict[str, Any] = server.post("/api/chat", body)["message"]
    return message


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _download(registry: Registry) -> Request:
    """Wait for the first bytes that are asked for, those of the weights."""
    _wait(lambda: any(request.range for request in registry.requests))
    return next(request for request in registry.requests if request.range)


def _range_starts(registry: Registry) -> list[int]:
    return [int(r.range[6:].partition("-")[0]) for r in registry.requests if r.range]


def _wait(check: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " not in stat.read_text("utf-8")
