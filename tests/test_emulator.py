"""The emulator answers, loads, forgets and fails as a v0.33.0 server was seen to."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from http.client import HTTPConnection
from itertools import islice
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pytest_ollama_warmup.ollama.emulator import Emulator, ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

A, B, C, D = (ScriptedModel(name, present=True, digest=name * 64) for name in "abcd")
EMBED = ScriptedModel("embed", present=True, capabilities=("embedding",))
Body = dict[str, Any]
# Never ends by itself within a test.
LONG_S = 600.0


class Api:
    """An emulator and a client of it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.http = httpx.Client(base_url=emulator.url, trust_env=False, verify=False, timeout=30)
        self._pool = ThreadPoolExecutor()

    def close(self) -> None:
        self.http.close()
        self._pool.shutdown()

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, verb: str, **body: object) -> httpx.Response:
        return self.http.post(f"/api/{verb}", json=body)

    def ask(self, verb: str, **body: object) -> Any:
        return self.post(verb, **body).raise_for_status().json()

    def later(self, verb: str, **body: object) -> Future[httpx.Response]:
        """Post from another thread."""
        return self._pool.submit(self.post, verb, **body)

    def load(self, model: str = "a", **body: object) -> None:
        assert "load" == self.ask("generate", model=model, **body)["done_reason"]

    def lines(self, verb: str, **body: object) -> list[Body]:
        """Post and read the whole stream."""
        response = self.post(verb, **body)
        assert 200 == response.status_code
        assert "application/x-ndjson" == response.headers["content-type"]
        return [json.loads(line) for line in response.text.splitlines()]

    @contextmanager
    def stream(self, verb: str, **body: object) -> Iterator[Iterator[Body]]:
        """Post and read lines until left; leaving closes the connection."""
        with self.http.stream("POST", f"/api/{verb}", json=body) as response:
            yield (json.loads(line) for line in response.iter_lines())

    def resident(self) -> list[str]:
        return [model["name"] for model in self.get("/api/ps")["models"]]

    def lease_s(self, name: str = "a:latest") -> float:
        """The rest of a resident model's lease."""
        (model,) = (one for one in self.get("/api/ps")["models"] if one["name"] == name)
        return datetime.fromisoformat(model["expires_at"]).timestamp() - time.time()

    def loaded(self) -> list[str]:
        return [load.model for load in self.emulator.loads]


@contextmanager
def serving(*models: ScriptedModel, **settings: Any) -> Iterator[Api]:
    with Emulator(models, **settings) as emulator:
        api = Api(emulator)
        try:
            yield api
        finally:
            # Ends requests that wait for ever, should the test have failed.
            emulator.stop()
            api.close()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; fails when it does not come true at all."""
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "never came true"
        time.sleep(0.002)


@contextmanager
def hanging(api: Api, verb: str, body: Body) -> Iterator[socket.socket]:
    """Send a request and wait for nothing; leaving closes the connection."""
    content = json.dumps(body).encode()
    head = f"POST /api/{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.emulator.port)) as connection:
        connection.sendall(head.encode() + content)
        yield connection


# --- plain answers


def test_it_answers_like_ollama() -> None:
    with serving(version="0.9.6") as api:
        assert "Ollama is running" == api.http.get("/").text
        assert {"version": "0.9.6"} == api.get("/api/version")


@pytest.mark.parametrize(
    ("status", "text", "method", "path"),
    [
        (404, "404 page not found", "GET", "/nix"),
        (404, "404 page not found", "POST", "/v2/"),
        (405, "405 method not allowed", "GET", "/api/show"),
        (405, "405 method not allowed", "POST", "/api/ps"),
        (405, "405 method not allowed", "DELETE", "/api/pull"),
    ],
)
def test_unknown_paths_and_wrong_methods(status: int, text: str, method: str, path: str) -> None:
    with serving() as api:
        response = api.http.request(method, path)
        assert (status, text) == (response.status_code, response.text)
        assert "text/plain" == response.headers["content-type"]


@pytest.mark.parametrize(
    ("status", "words", "verb", "content"),
    [
        (400, "missing request body", "show", ""),
        (400, "invalid JSON", "show", "{"),
        (400, "cannot unmarshal", "show", "[]"),
        (400, "cannot unmarshal", "generate", '{"model": 3}'),
        (400, "cannot unmarshal", "generate", '{"model": "a", "options": []}'),
        (400, "model is required", "show", "{}"),
        (400, "model is required", "chat", "{}"),
        (404, "model '' not found", "generate", "{}"),
        (404, "model '' not found", "embed", "{}"),
        (400, "invalid model name", "pull", "{}"),
        (400, "invalid model name", "pull", '{"model": "a b"}'),
        (400, "invalid model name", "show", '{"model": "a@sha256:00"}'),
        (400, "invalid model name", "generate", '{"model": "x/y/z/w"}'),
        (404, "model 'nix:latest' not found", "show", '{"model": "nix"}'),
        (404, "model 'nix' not found", "generate", '{"model": "nix"}'),
        (404, "model 'nix' not found", "chat", '{"model": "nix"}'),
        (404, 'model "nix" not found, try pulling it first', "embed", '{"model": "nix"}'),
        (404, "model 'far' not found", "generate", '{"model": "far"}'),
        (400, "invalid input type", "embed", '{"model": "a", "input": 3}'),
        (400, "invalid input type", "embed", '{"model": "a", "input": [3]}'),
        (400, 'source "" is invalid', "copy", "{}"),
        (400, 'destination "b c" is invalid', "copy", '{"source": "a", "destination": "b c"}'),
        (404, 'model "nix" not found', "copy", '{"source": "nix", "destination": "b"}'),
    ],
)
def test_a_bad_request_is_refused_in_ollamas_words(
    status: int, words: str, verb: str, content: str
) -> None:
    with serving(A, ScriptedModel("far")) as api:
        response = api.http.post(f"/api/{verb}", content=content)
        assert status == response.status_code
        assert ["error"] == list(response.json())
        assert words in response.json()["error"]


def test_tags_lists_what_is_pulled() -> None:
    with serving(replace(A, size=1234), ScriptedModel("far")) as api:
        (model,) = api.get("/api/tags")["models"]
        assert ("a:latest", "a:latest") == (model["name"], model["model"])
        assert (1234, "a" * 64) == (model["size"], model["digest"])
        assert ["completion"] == model["capabilities"]


def test_show_tells_capabilities_and_context() -> None:
    with serving(replace(A, capabilities=("completion", "tools"), context_length=8192)) as api:
        shown = api.ask("show", model="a")
        assert ["completion", "tools"] == shown["capabilities"]
        assert 8192 == shown["model_info"]["emulated.context_length"]
        assert "remote_host" not in shown


def test_all_spellings_of_a_name_are_one_model() -> None:
    with serving(A) as api:
        for name in ("a", "A:LATEST", "library/a", "registry.ollama.ai/library/a:latest"):
            assert name == api.ask("generate", model=name)["model"]
        assert ["a:latest"] == api.loaded()
        assert "capabilities" in api.ask("show", name="a")


def test_a_model_in_the_cloud_is_shown_and_never_loaded() -> None:
    with serving(replace(A, name="a:cloud", remote_host="https://cloud.test:443")) as api:
        assert "https://cloud.test:443" == api.ask("show", model="a:cloud")["remote_host"]
        assert "https://cloud.test:443" == api.get("/api/tags")["models"][0]["remote_host"]
        for verb in ("generate", "chat", "embed"):
            assert 502 == api.post(verb, model="a:cloud").status_code
        assert [] == api.loaded()


# --- pulling


def test_a_pull_goes_through_its_phases_and_the_model_is_there() -> None:
    with serving(replace(A, present=False, size=5000)) as api:
        part = {"digest": f"sha256:{'a' * 64}", "total": 5000, "completed": 5000}
        assert [
            {"status": "pulling manifest"},
            {"status": "pulling aaaaaaaaaaaa", **part},
            {"status": "verifying sha256 digest"},
            {"status": "writing manifest"},
            {"status": "success"},
        ] == api.lines("pull", model="a")
        assert 200 == api.post("show", model="a").status_code
        assert ["a"] == api.emulator.pulls


def test_a_model_that_is_there_is_pulled_again_in_one_line() -> None:
    with serving(replace(A, size=5000, pull_rate=1)) as api:
        completed = [line["completed"] for line in api.lines("pull", model="a") if "total" in line]
        assert [5000] == completed


def test_a_slow_pull_tells_how_far_it_is() -> None:
    with serving(replace(A, present=False, size=10**9, pull_rate=10**6)) as api:
        with api.stream("pull", model="a") as lines:
            completed = [line["completed"] for line in islice(lines, 6) if "completed" in line]
        assert sorted(set(completed)) == completed
        assert len(completed) >= 4


def test_a_pull_ends_when_all_bytes_are_there() -> None:
    with serving(replace(A, present=False, size=1000, pull_rate=10_000)) as api:
        *_, last, verifying, _, success = api.lines("pull", model="a")
        assert (1000, 1000) == (last["total"], last["completed"])
        assert "verifying sha256 digest" == verifying["status"]
        assert {"status": "success"} == success


def test_a_pull_leaves_out_completed_while_it_is_zero() -> None:
    slow = replace(A, present=False, pull_rate=1e-6)
    with serving(slow) as api, api.stream("pull", model="a") as lines:
        assert ["status", "digest", "total"] == list((next(lines), next(lines))[1])


def test_a_pull_without_stream_is_one_answer_at_the_end() -> None:
    with serving(replace(A, present=False)) as api:
        assert {"status": "success"} == api.ask("pull", model="a", stream=False)


@pytest.mark.parametrize(
    ("error", "model"),
    [
        ("pull model manifest: file does not exist", ScriptedModel("other")),
        ("pull model manifest: file does not exist", replace(A, in_registry=False)),
        ("unauthorized: access denied", replace(A, pull_error="unauthorized: access denied")),
    ],
    ids=["unknown", "not in the registry", "scripted"],
)
def test_a_pull_fails_inside_http_200(error: str, model: ScriptedModel) -> None:
    with serving(model) as api:
        assert [{"status": "pulling manifest"}, {"error": error}] == api.lines("pull", model="a")
        response = api.post("pull", model="a", stream=False)
        assert (500, {"error": error}) == (response.status_code, response.json())


def test_a_cut_pull_ends_half_way_without_a_word() -> None:
    with serving(replace(A, present=False, size=5000, pull_cut=True)) as api:
        for _ in range(2):
            *_, last = api.lines("pull", model="a")
            assert ("pulling aaaaaaaaaaaa", 2500) == (last["status"], last["completed"])
        assert 404 == api.post("show", model="a").status_code
        api.emulator.add(replace(A, present=False, size=5000))
        assert {"status": "success"} == api.lines("pull", model="a")[-1]


def test_a_client_that_leaves_stops_the_pull_and_its_bytes_are_kept() -> None:
    far = replace(A, present=False, size=10**9, pull_rate=10**6)
    with serving(far) as api:
        with api.stream("pull", model="a") as lines:
            seen = next(line["completed"] for line in lines if "completed" in line)
            assert ["a:latest"] == api.emulator.pulling
        wait_for(lambda: not api.emulator.pulling)
        # Were they lost, so slow a pull would begin with nothing at all.
        api.emulator.add(replace(far, pull_rate=1e-3))
        with api.stream("pull", model="a") as lines:
            assert seen <= next(line for line in lines if "total" in line)["completed"]
        wait_for(lambda: not api.emulator.pulling)
        api.emulator.add(replace(far, pull_rate=None))
        assert {"status": "success"} == api.lines("pull", model="a")[-1]


def test_a_client_that_leaves_also_stops_a_pull_without_stream() -> None:
    with serving(replace(A, present=False, size=10**9, pull_rate=1)) as api:
        with hanging(api, "pull", {"model": "a", "stream": False}):
            wait_for(lambda: api.emulator.pulling)
        wait_for(lambda: not api.emulator.pulling)


def test_a_model_that_is_gone_again_is_pulled_from_its_beginning() -> None:
    with serving(ScriptedModel("far")) as api:
        api.lines("pull", model="far")
        api.emulator.add(ScriptedModel("far", pull_rate=1e-6))
        assert 404 == api.post("show", model="far").status_code
        with api.stream("pull", model="far") as lines:
            assert "completed" not in next(line for line in lines if "total" in line)


def test_two_clients_share_one_download() -> None:
    with serving(replace(A, present=False, size=10**9, pull_rate=10**6)) as api:
        with api.stream("pull", model="a") as first:
            seen = next(line["completed"] for line in first if "completed" in line)
            with api.stream("pull", model="a") as second:
                assert seen <= next(line for line in second if "total" in line)["completed"]
            assert "total" in next(first)
        wait_for(lambda: not api.emulator.pulling)


# --- generating


def test_load_only_is_one_json_object_without_times() -> None:
    with serving(A) as api:
        for stream in (True, False):
            response = api.post("generate", model="a", stream=stream)
            assert "application/json; charset=utf-8" == response.headers["content-type"]
            answer = response.json()
            assert answer.pop("created_at").endswith("Z")
            assert {"model": "a", "response": "", "done": True, "done_reason": "load"} == answer
        assert ["a:latest"] == api.resident()


def test_chat_without_messages_only_loads() -> None:
    with serving(A) as api:
        answer = api.ask("chat", model="a", messages=[])
        assert "load" == answer["done_reason"]
        assert {"role": "assistant", "content": ""} == answer["message"]
        assert ["a:latest"] == api.resident()


@pytest.mark.parametrize(
    ("verb", "asked"),
    [("generate", {"prompt": "Hi"}), ("chat", {"messages": [{"role": "user", "content": "Hi"}]})],
)
def test_an_answer_is_cut_at_num_predict_and_measured(verb: str, asked: Body) -> None:
    with serving(A) as api:
        answer = api.ask(verb, model="a", stream=False, options={"num_predict": 3}, **asked)
        assert ("I am an") == answer["message"]["content"] if verb == "chat" else answer["response"]
        assert ("length", 3, 2) == (
            answer["done_reason"],
            answer["eval_count"],
            answer["prompt_eval_count"],
        )
        durations = [value for key, value in answer.items() if key.endswith("_duration")]
        assert [int] * 4 == [type(value) for value in durations]
        assert answer["total_duration"] >= answer["load_duration"] + answer["eval_duration"]


def test_an_answer_streams_word_by_word_and_its_end_has_the_times() -> None:
    with serving(A) as api:
        *parts, last = api.lines("generate", model="a", prompt="Hi", options={"num_predict": -1})
        assert "I am an emulator, not a model, sorry." == "".join(p["response"] for p in parts)
        assert {False} == {part["done"] for part in parts}
        assert (True, "stop", 8) == (last["done"], last["done_reason"], last["eval_count"])
        assert [] == [part for part in parts if "total_duration" in part]


def test_a_client_that_leaves_an_answer_frees_the_slot() -> None:
    with serving(replace(A, eval_s=LONG_S)) as api:
        with hanging(api, "generate", {"model": "a", "prompt": "Hi"}) as connection:
            assert b"200 OK" in connection.recv(100)
        api.emulator.add(A)
        assert "stop" == api.ask("generate", model="a", prompt="Hi", stream=False)["done_reason"]


def test_one_model_answers_one_prompt_at_a_time() -> None:
    body = {"model": "a", "prompt": "Hi"}
    with serving(replace(A, eval_s=LONG_S)) as api, hanging(api, "generate", body) as first:
        assert b"200 OK" in first.recv(100)
        with hanging(api, "generate", body) as second:
            second.settimeout(0.1)
            with pytest.raises(TimeoutError):
                second.recv(1)
            # A load-only request needs no slot.
            api.load("a")
            first.close()
            second.settimeout(30)
            assert b"200 OK" in second.recv(100)


@pytest.mark.parametrize(
    ("status", "error", "verb", "model", "body"),
    [
        (400, '"a" does not support generate', "generate", {"damaged": True}, {}),
        (400, '"a" does not support chat', "chat", {"damaged": True}, {}),
        (400, '"a" does not support generate', "generate", {"capabilities": ("embedding",)}, {}),
        (400, '"a" does not support thinking', "generate", {}, {"think": True}),
        (500, "no memory", "generate", {"load_error": "no memory"}, {}),
        (500, "no memory", "embed", {"load_error": "no memory"}, {}),
        (500, 'option "num_ctx" must be of type integer', "generate", {}, {"num_ctx": "4096"}),
        (500, 'option "num_ctx" must be of type integer', "generate", {}, {"num_ctx": True}),
        (500, 'option "use_mmap" must be of type boolean', "generate", {}, {"use_mmap": 1}),
    ],
)
def test_a_model_that_cannot_be_used_is_not_loaded(
    status: int, error: str, verb: str, model: Body, body: Body
) -> None:
    asked = body if "think" in body else {"options": body}
    with serving(replace(A, **model)) as api:
        response = api.post(verb, model="a", **asked)
        assert (status, {"error": error}) == (response.status_code, response.json())
        assert [] == api.resident()
        assert [] == api.loaded()


def test_show_calls_a_damaged_model_sound() -> None:
    with serving(replace(A, damaged=True)) as api:
        assert ["completion"] == api.ask("show", model="a")["capabilities"]


def test_a_thinking_model_may_think() -> None:
    with serving(replace(A, capabilities=("completion", "thinking"))) as api:
        api.load("a", think=True)


def test_a_busy_server_turns_loads_away_but_not_those_whose_model_is_hot() -> None:
    with serving(replace(A, busy=2)) as api:
        answers = [api.post("generate", model="a") for _ in range(3)]
        assert [503, 503, 200] == [answer.status_code for answer in answers]
        busy = "server busy, please try again.  maximum pending requests exceeded"
        assert {"error": busy} == answers[0].json()
        api.emulator.add(replace(A, busy=1))
        api.load("a")
        assert 503 == api.post("generate", model="a", options={"num_ctx": 8192}).status_code


# --- embedding


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_embed_without_input_loads_any_model(body: Body) -> None:
    with serving(A) as api:
        assert {"model": "a", "embeddings": []} == api.ask("embed", model="a", **body)
        assert ["a:latest"] == api.resident()


def test_embed_gives_equal_texts_equal_vectors() -> None:
    with serving(EMBED) as api:
        answer = api.ask("embed", model="embed", input=["x", "y", "x"])
        x, y, again = answer["embeddings"]
        assert x == again
        assert x != y
        assert {len(x)} == {len(y)}
        assert answer["total_duration"] >= answer["load_duration"] > 0
        assert [x] == api.ask("embed", model="embed", input="x")["embeddings"]


def test_a_completion_model_does_not_embed() -> None:
    with serving(A) as api:
        response = api.post("embed", model="a", input="x")
        assert 501 == response.status_code
        assert "This server does not support embeddings." in response.json()["error"]


# --- leases


@pytest.mark.parametrize(
    ("error", "keep_alive"),
    [
        ('time: missing unit in duration "300"', "300"),
        ('time: missing unit in duration "-1"', "-1"),
        ('time: missing unit in duration "1h30"', "1h30"),
        ('time: unknown unit "d" in duration "1d"', "1d"),
        ('time: unknown unit " m" in duration "1 m"', "1 m"),
        ('time: invalid duration "forever"', "forever"),
        ('time: invalid duration ".s"', ".s"),
        ('time: invalid duration ""', ""),
        ('time: invalid duration "-"', "-"),
        ("Unsupported type: 'bool'", True),
        ("Unsupported type: '[]interface {}'", []),
        ("Unsupported type: 'map[string]interface {}'", {}),
    ],
)
def test_a_keep_alive_that_go_cannot_read_is_refused_before_anything_else(
    error: str, keep_alive: object
) -> None:
    with serving() as api:
        for verb in ("generate", "chat", "embed"):
            response = api.post(verb, model="nix", keep_alive=keep_alive)
            assert (400, {"error": error}) == (response.status_code, response.json())


@pytest.mark.parametrize(
    ("seconds", "keep_alive"),
    [
        (300, None),
        (300, 300),
        (1800, "30m"),
        (5400, "1h30m"),
        (5401.5, "1.5h1.5s"),
        (600, "+10m"),
        (600, "600000ms"),
    ],
)
def test_the_lease_is_what_was_asked(seconds: float, keep_alive: object) -> None:
    with serving(A) as api:
        api.load("a", keep_alive=keep_alive)
        assert pytest.approx(seconds, abs=100) == api.lease_s()


@pytest.mark.parametrize("keep_alive", [-1, -0.5, "-1m", "-1s"])
def test_a_negative_lease_lasts_292_years(keep_alive: object) -> None:
    with serving(A) as api:
        api.load("a", keep_alive=keep_alive)
        assert pytest.approx(292.27 * 365.25 * 86400, rel=1e-3) == api.lease_s()


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", 0.0])
@pytest.mark.parametrize(("verb", "last"), [("generate", "response"), ("chat", "message")])
def test_a_lease_of_zero_unloads(verb: str, last: str, keep_alive: object) -> None:
    with serving(A, B) as api:
        api.load("a")
        answer = api.ask(verb, model="a", keep_alive=keep_alive)
        assert ("unload", True) == (answer["done_reason"], last in answer)
        assert [] == api.resident()
        assert "unload" == api.ask(verb, model="b", keep_alive=keep_alive)["done_reason"]
        assert ["a:latest"] == api.loaded()


def test_even_an_embedding_model_is_unloaded_by_generate() -> None:
    with serving(EMBED) as api:
        api.ask("embed", model="embed")
        assert "unload" == api.ask("generate", model="embed", keep_alive=0)["done_reason"]
        assert [] == api.resident()


@pytest.mark.parametrize("keep_alive", [0, 10_000_000_000, 9.3e9])
@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_with_no_lease_or_one_that_overflows_leaves_nothing_loaded(
    keep_alive: float, stream: bool
) -> None:
    with serving(A) as api:
        body = {"model": "a", "prompt": "Hi", "keep_alive": keep_alive, "stream": stream}
        assert 200 == api.post("generate", **body).status_code
        assert ["a:latest"] == api.loaded()
        assert [] == api.resident()


def test_a_lease_that_overflows_does_not_stop_a_load_only_request() -> None:
    with serving(A) as api:
        api.load("a", keep_alive=10_000_000_000)
        assert [] == api.resident()


def test_a_request_that_names_no_lease_keeps_the_one_before() -> None:
    with serving(A, keep_alive_s=1000) as api:
        api.load("a")
        assert pytest.approx(1000, abs=100) == api.lease_s()
        api.load("a", keep_alive="1h")
        api.load("a")
        api.load("a", keep_alive=None)
        assert pytest.approx(3600, abs=100) == api.lease_s()


def test_a_reload_loses_the_lease() -> None:
    with serving(A) as api:
        api.load("a", keep_alive=-1)
        api.load("a", options={"num_ctx": 2048})
        assert pytest.approx(300, abs=100) == api.lease_s()


def test_a_model_leaves_when_its_lease_ends() -> None:
    with serving(A) as api:
        api.load("a", keep_alive=0.05)
        wait_for(lambda: [] == api.resident())
        api.load("a")
        assert ["a:latest", "a:latest"] == api.loaded()


def test_the_lease_of_a_busy_model_begins_anew_all_the_time() -> None:
    body = {"model": "a", "prompt": "Hi", "keep_alive": 1000}
    with serving(replace(A, eval_s=LONG_S)) as api, hanging(api, "generate", body) as busy:
        assert b"200 OK" in busy.recv(100)
        assert pytest.approx(1000, abs=100) == api.lease_s()


def test_a_lease_does_not_end_while_the_model_answers() -> None:
    with serving(replace(A, eval_s=LONG_S)) as api:
        body = {"model": "a", "prompt": "Hi", "keep_alive": 0.001}
        with hanging(api, "generate", body) as connection:
            assert b"200 OK" in connection.recv(100)
            time.sleep(0.01)
            assert ["a:latest"] == api.resident()
        wait_for(lambda: [] == api.resident())


# --- options that make the server load again


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"num_ctx": 2048}),
        ({}, {"num_ctx": 8192}),
        ({"num_ctx": 8192}, {}),
        ({}, {"num_batch": 256}),
        ({}, {"num_gpu": 0}),
        ({}, {"num_gpu": 1}),
        ({}, {"num_thread": 1}),
        ({"num_thread": 1}, {}),
        ({}, {"use_mmap": True}),
        ({"use_mmap": False}, {}),
        ({}, {"main_gpu": 0}),
        ({"main_gpu": 0}, {}),
    ],
    ids=str,
)
def test_other_runner_options_load_the_model_again(
    first: dict[str, object], second: dict[str, object]
) -> None:
    with serving(A) as api:
        api.load("a", options=first)
        api.load("a", options=second)
        assert ["a:latest", "a:latest"] == api.loaded()
        assert ["a:latest"] == api.resident()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({}, {"num_ctx": 4096}),
        ({}, {"num_ctx": 4096.0}),
        ({}, {"num_ctx": None}),
        ({"num_ctx": 4096}, {}),
        ({"num_ctx": 32768}, {"num_ctx": 10**6}),
        ({"num_ctx": 1}, {"num_ctx": -5}),
        ({}, {"num_batch": 512}),
        ({}, {"num_gpu": -1}),
        ({}, {"num_gpu": -2}),
        ({"num_gpu": 0}, {}),
        ({}, {"use_mmap": False}),
        ({}, {"temperature": 1, "num_predict": 5, "seed": 1, "stop": ["x"], "nix": True}),
    ],
    ids=str,
)
def test_equal_runner_options_and_all_others_do_not(
    first: dict[str, object], second: dict[str, object]
) -> None:
    with serving(A) as api:
        api.load("a", options=first)
        api.load("a", options=second)
        assert ["a:latest"] == api.loaded()


@pytest.mark.parametrize(
    ("context", "options"),
    [(1000, {}), (2048, {"num_ctx": 2048}), (4, {"num_ctx": 0}), (32768, {"num_ctx": 10**6})],
)
def test_the_context_is_told_and_bounded(context: int, options: dict[str, object]) -> None:
    with serving(A, default_num_ctx=1000) as api:
        api.load("a", options=options)
        assert context == api.get("/api/ps")["models"][0]["context_length"]
        assert context == api.emulator.loads[0].options["num_ctx"]


# --- one load at a time


def test_loads_wait_for_each_other_in_the_order_of_their_requests() -> None:
    with serving(replace(A, load_s=LONG_S), B, C) as api:
        with hanging(api, "generate", {"model": "a"}):
            wait_for(lambda: "a:latest" == api.emulator.loading)
            waiting = []
            for name in "cb":
                waiting.append(api.later("generate", model=name))
                wait_for(lambda: len(waiting) + 1 == len(api.emulator.scheduler.queue))
            assert [False, False] == [one.done() for one in waiting]
        assert [200, 200] == [one.result().status_code for one in waiting]
        assert ["c:latest", "b:latest"] == api.loaded()


def test_a_model_that_loads_is_not_resident_before_it_answers() -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        answer = api.later("generate", model="a")
        wait_for(lambda: "a:latest" == api.emulator.loading)
        assert ([], []) == (api.resident(), api.loaded())
        api.emulator.add(A)
        assert 200 == answer.result().status_code
        assert (["a:latest"], None) == (api.resident(), api.emulator.loading)


def test_a_load_takes_its_time() -> None:
    with serving(replace(A, load_s=0.2)) as api:
        before = time.monotonic()
        api.load("a")
        assert time.monotonic() - before >= 0.2


def test_requests_for_one_model_share_its_load() -> None:
    with serving(replace(A, load_s=0.2)) as api:
        answers = [api.later("generate", model="a") for _ in range(4)]
        assert [200] * 4 == [answer.result().status_code for answer in answers]
        assert ["a:latest"] == api.loaded()


def test_a_hot_model_answers_while_another_loads() -> None:
    with serving(A, replace(B, load_s=LONG_S)) as api:
        api.load("a")
        with hanging(api, "generate", {"model": "b"}):
            wait_for(lambda: "b:latest" == api.emulator.loading)
            api.load("a")
            assert "b:latest" == api.emulator.loading


def test_nothing_is_sent_during_a_load() -> None:
    body = {"model": "a", "prompt": "Hi"}
    with serving(replace(A, load_s=LONG_S)) as api, hanging(api, "generate", body) as connection:
        wait_for(lambda: "a:latest" == api.emulator.loading)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("verb", ["generate", "chat", "embed"])
def test_a_client_that_leaves_ends_the_load(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        with hanging(api, verb, {"model": "a"}):
            wait_for(lambda: "a:latest" == api.emulator.loading)
        wait_for(lambda: api.emulator.loading is None)
        assert ([], []) == (api.resident(), api.loaded())
        api.emulator.add(A)
        api.load("a")
    assert "" == capsys.readouterr().err


def test_a_client_that_leaves_the_queue_loads_nothing() -> None:
    with serving(replace(A, load_s=LONG_S), B, C) as api:
        with hanging(api, "generate", {"model": "a"}):
            wait_for(lambda: "a:latest" == api.emulator.loading)
            with hanging(api, "generate", {"model": "b"}):
                wait_for(lambda: 2 == len(api.emulator.scheduler.queue))
            last = api.later("generate", model="c")
            wait_for(lambda: 3 == len(api.emulator.calls("generate")))
        assert 200 == last.result().status_code
        assert ["c:latest"] == api.loaded()


def test_unloading_does_not_touch_a_load_under_way() -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        answer = api.later("generate", model="a")
        wait_for(lambda: "a:latest" == api.emulator.loading)
        assert "unload" == api.ask("generate", model="a", keep_alive=0)["done_reason"]
        api.emulator.add(A)
        assert 200 == answer.result().status_code
        assert ["a:latest"] == api.resident()


# --- eviction


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_the_fourth_model_evicts_the_first_digest_whatever_was_used_last(order: str) -> None:
    with serving(D, C, B, A) as api:
        for name in order:
            api.load(name)
        api.load("a")
        api.load("d")
        assert {"b:latest", "c:latest", "d:latest"} == set(api.resident())


def test_the_shortest_lease_goes_first() -> None:
    with serving(A, B, C, D) as api:
        api.load("a", keep_alive=-1)
        api.load("b", keep_alive="10m")
        api.load("c", keep_alive="1m")
        # Latest to expire first, as in /api/ps.
        assert ["a:latest", "b:latest", "c:latest"] == api.resident()
        api.load("d")
        assert ["a:latest", "b:latest", "d:latest"] == api.resident()


def test_an_idle_model_goes_before_a_busy_one_with_a_shorter_lease() -> None:
    body = {"model": "a", "prompt": "Hi", "keep_alive": 60}
    with (
        serving(replace(A, eval_s=LONG_S), B, C, max_loaded=2) as api,
        hanging(api, "generate", body) as busy,
    ):
        assert b"200 OK" in busy.recv(100)
        api.load("b", keep_alive=-1)
        api.load("c")
        assert {"a:latest", "c:latest"} == set(api.resident())


def test_a_load_waits_for_a_busy_model_when_there_is_no_idle_one() -> None:
    with serving(replace(A, eval_s=LONG_S), B, max_loaded=1) as api:
        with hanging(api, "generate", {"model": "a", "prompt": "Hi"}) as busy:
            assert b"200 OK" in busy.recv(100)
            answer = api.later("generate", model="b")
            wait_for(lambda: 2 == len(api.emulator.calls("generate")))
            assert ["a:latest"] == api.resident()
            assert not answer.done()
        assert 200 == answer.result().status_code
        assert ["b:latest"] == api.resident()


def test_a_reload_waits_for_the_answer_under_way() -> None:
    with serving(replace(A, eval_s=LONG_S)) as api:
        with hanging(api, "generate", {"model": "a", "prompt": "Hi"}) as busy:
            assert b"200 OK" in busy.recv(100)
            answer = api.later("generate", model="a", options={"num_ctx": 8192})
            wait_for(lambda: 2 == len(api.emulator.calls("generate")))
            assert [4096] == [load.options["num_ctx"] for load in api.emulator.loads]
        assert 200 == answer.result().status_code
        assert [4096, 8192] == [load.options["num_ctx"] for load in api.emulator.loads]


def test_a_copy_is_another_name_for_the_same_runner() -> None:
    with serving(A) as api:
        assert b"" == api.post("copy", source="a", destination="n/z:1").raise_for_status().content
        assert {"a" * 64} == {model["digest"] for model in api.get("/api/tags")["models"]}
        api.load("n/z:1")
        api.load("a")
        assert ["n/z:1"] == api.loaded() == api.resident()


def test_two_models_of_the_same_weights_share_a_runner_under_the_first_digest() -> None:
    with serving(replace(A, weights="f" * 64), replace(B, weights="f" * 64)) as api:
        api.load("b")
        api.load("a")
        assert ["b:latest"] == api.loaded()
        assert ["b" * 64] == [model["digest"] for model in api.get("/api/ps")["models"]]


def test_ps_tells_name_size_and_digest() -> None:
    with serving(replace(A, size=1234)) as api:
        api.load("a")
        (model,) = api.get("/api/ps")["models"]
        assert ("a:latest", "a:latest") == (model["name"], model["model"])
        assert (1234, 0, "a" * 64) == (model["size"], model["size_vram"], model["digest"])
        assert datetime.fromisoformat(model["expires_at"]).tzinfo is not None


# --- what a test can do with it


def test_the_log_keeps_what_each_request_was() -> None:
    with serving(A) as api:
        before = time.monotonic()
        api.http.get("/api/ps", headers={"Authorization": "Bearer x"})
        api.post("generate", model="A:latest", keep_alive=1)
        api.post("nix", model=3)
        ps, generate, nix = api.emulator.requests
        assert ("GET", "/api/ps", "", {}) == (ps.method, ps.path, ps.model, ps.body)
        assert "Bearer x" == ps.headers["authorization"]
        assert ("POST", "A:latest") == (generate.method, generate.model)
        assert {"model": "A:latest", "keep_alive": 1} == generate.body
        assert [generate] == api.emulator.calls("generate")
        assert "/api/nix" == nix.path
        assert before <= ps.at <= generate.at <= nix.at <= time.monotonic()
        api.emulator.forget()
        assert ([], []) == (api.emulator.requests, api.emulator.loads)


def test_what_a_test_gives_is_copied_so_that_constants_stay_as_they_are() -> None:
    with serving(far := ScriptedModel("far", busy=1)) as api:
        api.lines("pull", model="far")
        api.post("generate", model="far")
        assert ScriptedModel("far", busy=1) == far


def test_a_model_can_be_evicted_from_outside() -> None:
    with serving(A, B) as api:
        api.load("a")
        api.load("b")
        api.emulator.unload("A")
        assert ["b:latest"] == api.resident()


def test_another_service_can_answer_in_its_place_and_leave_again() -> None:
    with serving(A) as api:
        api.emulator.answer_all_with(401, "text/html", "Sign in")
        for response in (api.http.get("/api/version"), api.post("pull", model="a")):
            assert (401, "Sign in") == (response.status_code, response.text)
            assert "text/html" == response.headers["content-type"]
        api.emulator.answer_all_with(403)
        assert (403, b"") == ((response := api.http.get("/nix")).status_code, response.content)
        api.emulator.answer_all_with(None)
        assert "0.33.0" == api.get("/api/version")["version"]
        assert ["a"] == api.emulator.pulls


def test_a_server_that_goes_away_comes_back_cold_on_the_same_port() -> None:
    with serving(A, ScriptedModel("far")) as api:
        api.lines("pull", model="far")
        api.load("a")
        url = api.emulator.url
        api.emulator.stop()
        api.emulator.stop()
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                httpx.get(url, trust_env=False)
        api.emulator.start()
        assert url == api.emulator.url
        assert [] == api.resident()
        assert 200 == api.post("show", model="far").status_code
        api.load("a")


def test_going_away_cuts_loads_and_idle_connections() -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        idle = socket.create_connection(("127.0.0.1", api.emulator.port))
        with idle, hanging(api, "generate", {"model": "a"}) as loading:
            wait_for(lambda: "a:latest" == api.emulator.loading)
            api.emulator.stop()
            assert api.emulator.loading is None
            assert (b"", b"") == (idle.recv(1), loading.recv(1))


def test_a_server_can_be_late() -> None:
    with serving(start=False) as api:
        with pytest.raises(httpx.ConnectError):
            api.get("/api/version")
        api.emulator.start()
        api.emulator.start()
        assert "0.33.0" == api.get("/api/version")["version"]


def test_its_port_can_be_chosen_and_is_not_taken_from_another() -> None:
    with serving(start=False) as api:
        port = api.emulator.port
        with Emulator() as other, pytest.raises(OSError, match="in use"):
            Emulator(port=other.port)
    with Emulator(port=port) as again:
        assert f"http://127.0.0.1:{port}" == again.url


def test_nothing_of_it_runs_on_afterwards() -> None:
    before = set(threading.enumerate())
    with serving(replace(A, load_s=LONG_S)) as api, hanging(api, "generate", {"model": "a"}):
        wait_for(lambda: "a:latest" == api.emulator.loading)
        api.emulator.stop()
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_a_connection_serves_many_requests_also_after_errors_and_streams() -> None:
    with serving(A) as api:
        connection = HTTPConnection("127.0.0.1", api.emulator.port)
        connection.connect()
        sock = connection.sock
        paths = ["/nix", "/api/show", "/api/generate", "/api/pull", "/api/copy"] * 2
        for path in paths:
            connection.request("POST", path, json.dumps({"model": "a", "prompt": "Hi"}))
            connection.getresponse().read()
            assert sock is connection.sock
        connection.close()
        assert paths == [request.path for request in api.emulator.requests]


def test_many_clients_may_come_at_once() -> None:
    with serving(replace(A, load_s=0.05)) as api, ThreadPoolExecutor(64) as pool:
        together = threading.Barrier(64)

        def work(_: int) -> int:
            connection = HTTPConnection("127.0.0.1", api.emulator.port, timeout=60)
            together.wait()
            connection.request("POST", "/api/generate", '{"model": "a", "stream": false}')
            with connection.getresponse() as response:
                status = response.status
            connection.close()
            return status

        assert {200} == set(pool.map(work, range(64)))
        assert 64 == len(api.emulator.requests)
        assert ["a:latest"] == api.loaded()


def test_it_can_be_run_from_the_command_line() -> None:
    command = [sys.executable, "-m", "pytest_ollama_warmup.ollama.emulator"]
    models = '[{"name": "tiny", "present": true}]'
    with subprocess.Popen([*command, models], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            tags = httpx.get(f"{url}/api/tags", trust_env=False).json()
            assert ["tiny:latest"] == [model["name"] for model in tags["models"]]
        finally:
            process.terminate()
