"""What the emulator plays by its script, and what a test can do with it.

What it has in common with a real server is in ``tests/contract.py``.
"""

from __future__ import annotations

import json
import signal
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

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.emulator.__main__ import main as serve
from pytest_ollama_warmup.emulator.server import Server
from tests.forked import hearing_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

A, B, C = (ScriptedModel(name, present=True, digest=name * 64) for name in "abc")
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

    def loaded_models(self) -> list[str]:
        return [model["name"] for model in self.get("/api/ps")["models"]]

    def keep_alive_s(self, name: str = "a:latest") -> float:
        """How long a loaded model is still kept, in seconds."""
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


def test_an_answer_streams_word_by_word_and_its_end_has_the_times() -> None:
    with serving(A) as api:
        *parts, last = api.lines("generate", model="a", prompt="Hi", options={"num_predict": -1})
        assert "I am an emulator, not a model, sorry." == "".join(p["response"] for p in parts)
        assert {False} == {part["done"] for part in parts}
        assert (True, "stop", 8) == (last["done"], last["done_reason"], last["eval_count"])
        assert [] == [part for part in parts if "total_duration" in part]


@pytest.mark.parametrize(
    ("status", "error", "verb", "model"),
    [
        (400, '"a" does not support generate', "generate", {"damaged": True}),
        (400, '"a" does not support chat', "chat", {"damaged": True}),
        (500, "no memory", "generate", {"load_error": "no memory"}),
        (500, "no memory", "embed", {"load_error": "no memory"}),
    ],
)
def test_a_model_that_cannot_be_used_is_not_loaded(
    status: int, error: str, verb: str, model: Body
) -> None:
    with serving(replace(A, **model)) as api:
        response = api.post(verb, model="a")
        assert (status, {"error": error}) == (response.status_code, response.json())
        assert ([], []) == (api.loaded_models(), api.loaded())


def test_show_calls_a_damaged_model_sound() -> None:
    with serving(replace(A, damaged=True)) as api:
        assert ["completion"] == api.ask("show", model="a")["capabilities"]


def test_a_busy_server_turns_loads_away_but_not_those_whose_model_is_hot() -> None:
    with serving(replace(A, busy=2)) as api:
        answers = [api.post("generate", model="a") for _ in range(3)]
        assert [503, 503, 200] == [answer.status_code for answer in answers]
        busy = "server busy, please try again.  maximum pending requests exceeded"
        assert {"error": busy} == answers[0].json()
        api.emulator.add(replace(A, busy=1))
        api.load("a")
        assert 503 == api.post("generate", model="a", options={"num_ctx": 8192}).status_code


# --- keep-alives


@pytest.mark.parametrize("keep_alive", [0, 10_000_000_000, 9.3e9])
@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_with_no_keep_alive_or_one_that_overflows_leaves_nothing_loaded(
    keep_alive: float, stream: bool
) -> None:
    with serving(A) as api:
        body = {"model": "a", "prompt": "Hi", "keep_alive": keep_alive, "stream": stream}
        assert 200 == api.post("generate", **body).status_code
        assert ["a:latest"] == api.loaded()
        assert [] == api.loaded_models()


def test_a_keep_alive_that_overflows_does_not_stop_a_load_only_request() -> None:
    with serving(A) as api:
        api.load("a", keep_alive=10_000_000_000)
        assert [] == api.loaded_models()


def test_a_request_that_names_no_keep_alive_keeps_the_one_before() -> None:
    with serving(A, keep_alive_s=1000) as api:
        api.load("a")
        assert pytest.approx(1000, abs=100) == api.keep_alive_s()
        api.load("a", keep_alive="1h")
        api.load("a")
        api.load("a", keep_alive=None)
        assert pytest.approx(3600, abs=100) == api.keep_alive_s()


def test_the_keep_alive_of_a_busy_model_starts_over_all_the_time() -> None:
    body = {"model": "a", "prompt": "Hi", "keep_alive": 1000}
    with serving(replace(A, eval_s=LONG_S)) as api, hanging(api, "generate", body) as busy:
        assert b"200 OK" in busy.recv(100)
        assert pytest.approx(1000, abs=100) == api.keep_alive_s()


# --- options


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


def test_a_model_that_loads_is_not_loaded_before_it_answers() -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        answer = api.later("generate", model="a")
        wait_for(lambda: "a:latest" == api.emulator.loading)
        assert ([], []) == (api.loaded_models(), api.loaded())
        api.emulator.add(A)
        assert 200 == answer.result().status_code
        assert (["a:latest"], None) == (api.loaded_models(), api.emulator.loading)


def test_a_load_takes_its_time() -> None:
    with serving(replace(A, load_s=0.2)) as api:
        before = time.monotonic()
        api.load("a")
        assert time.monotonic() - before >= 0.2


def test_a_hot_model_answers_while_another_loads() -> None:
    with serving(A, replace(B, load_s=LONG_S)) as api:
        api.load("a")
        with hanging(api, "generate", {"model": "b"}):
            wait_for(lambda: "b:latest" == api.emulator.loading)
            api.load("a")
            assert "b:latest" == api.emulator.loading


@pytest.mark.parametrize("verb", ["generate", "chat", "embed"])
def test_a_client_that_leaves_ends_the_load(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(replace(A, load_s=LONG_S)) as api:
        with hanging(api, verb, {"model": "a"}):
            wait_for(lambda: "a:latest" == api.emulator.loading)
        wait_for(lambda: api.emulator.loading is None)
        assert ([], []) == (api.loaded_models(), api.loaded())
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
        assert ["a:latest"] == api.loaded_models()


# --- eviction


def test_a_load_waits_for_a_busy_model_when_there_is_no_idle_one() -> None:
    with serving(replace(A, eval_s=LONG_S), B, max_loaded=1) as api:
        with hanging(api, "generate", {"model": "a", "prompt": "Hi"}) as busy:
            assert b"200 OK" in busy.recv(100)
            answer = api.later("generate", model="b")
            wait_for(lambda: 2 == len(api.emulator.calls("generate")))
            assert ["a:latest"] == api.loaded_models()
            assert not answer.done()
        assert 200 == answer.result().status_code
        assert ["b:latest"] == api.loaded_models()


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
        assert ["b:latest"] == api.loaded_models()


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
        assert [] == api.loaded_models()
        assert 200 == api.post("show", model="far").status_code
        api.load("a")


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system knows no such option")
def test_a_server_that_goes_away_holds_its_port_all_the_time() -> None:
    with serving() as api:
        bind, listening = Server.server_bind, []

        def watched(server: Server) -> None:
            bind(server)
            with socket.create_connection(("127.0.0.1", api.emulator.port)):
                listening.append(server)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Server, "server_bind", watched)
            api.emulator.stop()
        # The port had its holder before it was left.
        assert [api.emulator._server] == listening


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


def test_it_can_be_run_from_the_command_line_until_ctrl_c() -> None:
    command = [sys.executable, "-m", "pytest_ollama_warmup.emulator"]
    models = '[{"name": "tiny", "present": true}]'
    with hearing_signals():
        process = subprocess.Popen([*command, models], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            tags = httpx.get(f"{url}/api/tags", trust_env=False).json()
            assert ["tiny:latest"] == [model["name"] for model in tags["models"]]
            process.send_signal(signal.SIGINT)
            assert 0 == process.wait(30)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nonsense", "expected a JSON list of models: Expecting value: line 1 column 1 (char 0)"),
        ('["x"]', 'expected a JSON list of models, such as [{"name": "tiny"}]'),
        ('{"name": "x"}', 'expected a JSON list of models, such as [{"name": "tiny"}]'),
        ('[{"load_s": 1}]', 'each model needs a name, and {"load_s": 1} has none'),
        ('[{"name": "x", "nosuch": 1}]', "unknown key 'nosuch'; keys: name, size, present"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_models(
    capsys: pytest.CaptureFixture[str], given: str, problem: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve([given])
    assert 2 == ended.value.code
    assert f"error: {problem}" in capsys.readouterr().err


def test_the_command_says_that_its_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        serve(["--port", str(taken.getsockname()[1]), "[]"])
    assert "Address already in use" in capsys.readouterr().err
