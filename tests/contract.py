"""What the emulator and a real Ollama v0.33.0 have in common: each test here runs against both.

``tests/test_contract.py`` runs them against the emulator, ``tests/live/test_contract.py`` against a
real server with tiny models. What is no part of it, as only one of the two can do it:

- Real: the words of an answer, the numbers of a vector, the text of a load that fails. They come
  from the model and from llama-server; of the emulator's only the shape is asserted.
- Real: ``size`` and ``size_vram`` in ``/api/ps``. Some builds of llama-server claim a GPU that is none.
- Emulator: pulls that end with an error line (but for an unknown model), or without a word: the
  registry would have to be broken in just that way.
- Emulator: 503 (it takes 512 waiting requests), a start that takes long (it takes a GPU that is
  looked for in vain), a load or its queue that waits for the test (a tiny model loads in 0.3 s).
- Emulator: two pulls of one model at once. A real v0.33.0 can crash of them.
- Emulator: models in the cloud. They take an account.
"""

from __future__ import annotations

import json
import re
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from itertools import permutations
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Body = dict[str, Any]
BOUND_S = 60.0
FOREVER_S = 292.27 * 365.25 * 86400
HELLO = [{"role": "user", "content": "Hi"}]
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"


class World(Protocol):
    """A server with models, all cold.

    On its disk: ``a``, ``b``, ``c``, ``d``, completions of different weights with 4096 tokens of
    context; ``endless``, whose answers do not end by themselves; ``slow``, which takes 0.2 s to
    load at least; ``think``, ``embed``; ``broken``, which does not load.
    """

    url: str
    far: str
    """In the registry, of several megabytes, and not on the disk."""
    unknown: str
    """Not in the registry."""

    def weights(self, name: str) -> str:
        """Return by what the server orders models: where their weights lie."""

    def add_variant(self, name: str, base: str, num_ctx: int) -> None:
        """Make *name* from the weights of *base*, with this context length in its Modelfile."""

    def loads(self) -> int:
        """Return how many loads there have been."""

    def throttle(self, rate: float | None) -> None:
        """Download with *rate* bytes a second from now on."""

    def stall(self, at: int | None, seconds: float | None = None) -> None:
        """Stop downloads at this byte, from the next one on; for ever if for no time is said."""

    def kill_runner(self, name: str) -> None:
        """Kill the process behind a loaded model."""

    def kill(self) -> None:
        """Kill the server."""

    def restart(self) -> None:
        """Start the server again, at the same place."""


class Api:
    """A client of the world's server."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Without TLS there is nothing to verify, and what would do it takes 30 ms to make.
        self.http = httpx.Client(base_url=world.url, trust_env=False, verify=False, timeout=BOUND_S)
        self._pool = ThreadPoolExecutor()

    def close(self) -> None:
        self.http.close()
        self._pool.shutdown()

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    def ask(self, verb: str, **body: object) -> Any:
        return self.post(f"/api/{verb}", **body).raise_for_status().json()

    def later(self, path: str, **body: object) -> Future[httpx.Response]:
        """Post from another thread."""
        return self._pool.submit(self.post, path, **body)

    def load(self, name: str, **body: object) -> None:
        """Load *name*, which nobody else uses, and see the server end the request.

        Until then the model is in use and stays when room is made: for a moment after the answer.
        """
        before = self._expiry(name)
        assert "load" == self.ask("generate", model=name, **body)["done_reason"]
        until(lambda: self._is_idle(name, before))

    def _expiry(self, name: str) -> str | None:
        """Return until when *name* is kept; None where it is not listed by this name."""
        listed = (model for model in self.models() if model["name"] == f"{name}:latest")
        return next((model["expires_at"] for model in listed), None)

    def _is_idle(self, name: str, before: str | None) -> bool:
        """Whether the time it is kept is a new one, and stands: it grows as long as a load is used."""
        expiry = self._expiry(name)
        return expiry is None or (expiry != before and expiry == self._expiry(name))

    def pull(self, name: str) -> list[Body]:
        response = self.post("/api/pull", model=name, insecure=True)
        assert 200 == response.status_code
        assert "application/x-ndjson" == response.headers["content-type"]
        return lines_of(response)

    def delete(self, name: str) -> httpx.Response:
        return self.http.request("DELETE", "/api/delete", json={"model": name})

    @contextmanager
    def stream(self, path: str, **body: object) -> Iterator[Iterator[Body]]:
        """Post and read lines until left; leaving closes the connection."""
        with self.http.stream("POST", path, json=body) as response:
            assert 200 == response.status_code
            yield (json.loads(line) for line in response.iter_lines() if line)

    @contextmanager
    def busy(self, **body: object) -> Iterator[None]:
        """Let ``endless`` be at work."""
        with self.stream("/api/generate", model="endless", prompt="Hi", **body) as parts:
            next(parts)
            yield

    def models(self) -> list[Body]:
        """Return the loaded models as ``/api/ps`` lists them."""
        listed: list[Body] = self.get("/api/ps")["models"]
        return listed

    def loaded_models(self) -> list[str]:
        return [model["name"] for model in self.models()]

    def keep_alive_s(self, name: str) -> float:
        """Return for how long a loaded model is still kept."""
        expiry = self._expiry(name)
        assert expiry is not None
        return datetime.fromisoformat(expiry).timestamp() - time.time()

    def by_weights(self, *names: str) -> list[str]:
        return sorted(names, key=self.world.weights)


@pytest.fixture
def api(world: World) -> Iterator[Api]:
    client = Api(world)
    yield client
    client.close()


def lines_of(response: httpx.Response) -> list[Body]:
    return [json.loads(line) for line in response.text.splitlines() if line]


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < limit, "never came true"
        time.sleep(0.005)


def parts_of(lines: Iterable[Body]) -> list[tuple[int, int]]:
    """Return completed and total of each line that tells of the largest part: the weights."""
    parts = [line for line in lines if "total" in line]
    largest = max((part["total"] for part in parts), default=0)
    return [(part.get("completed", 0), part["total"]) for part in parts if part["total"] == largest]


# --- plain answers


def test_it_says_that_it_is_ollama(api: Api) -> None:
    answer = api.http.get("/")
    assert (200, "Ollama is running") == (answer.status_code, answer.text)
    assert ["version"] == list(api.get("/api/version"))


@pytest.mark.parametrize(
    ("status", "text", "method", "path"),
    [
        (404, "404 page not found", "GET", "/nix"),
        (404, "404 page not found", "POST", "/v2/"),
        (405, "405 method not allowed", "GET", "/api/show"),
        (405, "405 method not allowed", "POST", "/api/ps"),
        (405, "405 method not allowed", "DELETE", "/api/pull"),
        (405, "405 method not allowed", "POST", "/api/delete"),
        (405, "405 method not allowed", "GET", CHAT),
    ],
)
def test_unknown_paths_and_wrong_methods(
    api: Api, status: int, text: str, method: str, path: str
) -> None:
    answer = api.http.request(method, path)
    assert (status, text) == (answer.status_code, answer.text)
    assert "text/plain" == answer.headers["content-type"]


@pytest.mark.parametrize(
    ("status", "words", "verb", "content"),
    [
        (400, "missing request body", "show", ""),
        (400, "", "show", "{"),
        (400, "cannot unmarshal", "show", "[]"),
        (400, "cannot unmarshal", "generate", '{"model": 3}'),
        (400, "cannot unmarshal", "generate", '{"model": "a", "options": []}'),
        (400, "model is required", "show", "{}"),
        (400, "model is required", "chat", "{}"),
        (404, "model '' not found", "generate", "{}"),
        (404, "model '' not found", "embed", "{}"),
        (400, "invalid model name", "pull", "{}"),
        (400, "invalid model name", "pull", '{"model": "a b"}'),
        (404, "model 'nix:latest' not found", "show", '{"model": "nix"}'),
        (404, "model 'nix' not found", "generate", '{"model": "nix"}'),
        (404, "model 'nix' not found", "chat", '{"model": "nix"}'),
        (404, "model 'nix' not found", "generate", '{"model": "nix", "keep_alive": 0}'),
        (404, 'model "nix" not found, try pulling it first', "embed", '{"model": "nix"}'),
        (400, "invalid input type", "embed", '{"model": "a", "input": 3}'),
        (400, "invalid input type", "embed", '{"model": "a", "input": [3]}'),
        (400, 'source "" is invalid', "copy", "{}"),
        (400, 'destination "b c" is invalid', "copy", '{"source": "a", "destination": "b c"}'),
        (404, 'model "nix" not found', "copy", '{"source": "nix", "destination": "b"}'),
        (400, "missing request body", "delete", ""),
        (400, "model is required", "delete", "{}"),
        (400, 'name "a b" is invalid', "delete", '{"model": "a b"}'),
        (404, "model 'nix' not found", "delete", '{"model": "nix"}'),
    ],
)
def test_a_bad_request_is_refused(
    api: Api, status: int, words: str, verb: str, content: str
) -> None:
    method = "DELETE" if verb == "delete" else "POST"
    answer = api.http.request(method, f"/api/{verb}", content=content)
    assert (status, ["error"]) == (answer.status_code, list(answer.json()))
    assert words in answer.json()["error"]
    assert "application/json; charset=utf-8" == answer.headers["content-type"]


@pytest.mark.parametrize(
    "name", ["a", "a:latest", "A:Latest", "library/a", "registry.ollama.ai/library/a:latest"]
)
def test_a_model_has_many_names(api: Api, name: str) -> None:
    assert 200 == api.post("/api/show", model=name).status_code
    assert 200 == api.post("/api/show", name=name).status_code
    assert name == api.ask("generate", model=name)["model"]
    assert ["a:latest"] == api.loaded_models()


@pytest.mark.parametrize("name", ["a b", "x/y/z/w", "a@sha256:00", "localhost:5000/a", "../a"])
@pytest.mark.parametrize("verb", ["show", "generate", "chat", "embed", "pull"])
def test_a_name_that_is_none_is_refused(api: Api, verb: str, name: str) -> None:
    answer = api.post(f"/api/{verb}", model=name)
    assert (400, {"error": "invalid model name"}) == (answer.status_code, answer.json())


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [("a", ["completion"]), ("embed", ["embedding"]), ("think", ["completion", "thinking"])],
)
def test_show_tells_what_a_model_can_do(api: Api, name: str, capabilities: list[str]) -> None:
    shown = api.ask("show", model=name)
    assert capabilities == shown["capabilities"]
    assert {"details", "model_info", "modelfile", "modified_at", "template"} <= set(shown)
    assert "remote_host" not in shown


def test_show_tells_the_context_that_a_model_was_made_for(api: Api) -> None:
    info = api.ask("show", model="a")["model_info"]
    assert 4096 == info[f"{info['general.architecture']}.context_length"]


def test_show_calls_a_model_sound_that_does_not_load(api: Api) -> None:
    assert ["completion"] == api.ask("show", model="broken")["capabilities"]
    for _ in range(2):
        answer = api.post("/api/generate", model="broken")
        assert (500, ["error"]) == (answer.status_code, list(answer.json()))
    assert [] == api.loaded_models()


def test_tags_and_ps_tell_of_the_same_model(api: Api) -> None:
    api.load("a")
    (told,) = (one for one in api.get("/api/tags")["models"] if one["name"] == "a:latest")
    (loaded,) = api.models()
    assert {"name", "model", "size", "digest", "details", "modified_at", "capabilities"} == set(
        told
    )
    assert {
        "name",
        "model",
        "size",
        "digest",
        "details",
        "expires_at",
        "size_vram",
        "context_length",
    } == set(loaded)
    for entry in (told, loaded):
        assert ("a:latest", "a:latest") == (entry["name"], entry["model"])
        assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
    assert told["digest"] == loaded["digest"]
    assert told["size"] > 1000
    assert ["completion"] == told["capabilities"]
    assert 4096 == loaded["context_length"]
    assert datetime.fromisoformat(loaded["expires_at"]).tzinfo is not None


@pytest.mark.parametrize("keep_alive", [300, -1])
def test_the_end_of_a_keep_alive_moves_when_a_request_is_over_and_not_before(
    api: Api, keep_alive: int
) -> None:
    def expires() -> object:
        (loaded,) = api.models()
        return loaded["expires_at"]

    api.load("endless", keep_alive=keep_alive)
    # The end of a request is noted a little later than its answer comes.
    time.sleep(0.1)
    before = expires()
    assert before == expires()
    with api.busy():
        assert before == expires()
    until(lambda: before != expires())


def test_show_tells_the_weights_of_a_model(api: Api) -> None:
    def weights(name: str) -> str:
        found = re.search(r"^FROM .*sha256-(\S+)$", api.ask("show", model=name)["modelfile"], re.M)
        assert found is not None
        return found[1]

    assert weights("a") != weights("b")
    api.post("/api/copy", source="a", destination="twin").raise_for_status()
    assert weights("a") == weights("twin")
    api.delete("twin").raise_for_status()


def test_a_variant_has_the_weights_of_its_base_and_its_place_in_memory(api: Api) -> None:
    def loads(name: str, **options: int) -> int:
        before = api.world.loads()
        api.load(name, **({"options": options} if options else {}))
        return api.world.loads() - before

    api.world.add_variant("a-small", "a", 1024)
    shown = api.ask("show", model="a-small")
    assert re.fullmatch(r"num_ctx +1024", shown["parameters"])
    assert "parameters" not in api.ask("show", model="a")
    assert [1, 1, 1] == [loads("a"), loads("a-small"), loads("a")]
    assert ["a:latest"] == api.loaded_models()
    # The same options in the requests to both of them, and they share it in peace.
    assert [1, 0, 0] == [loads("a", num_ctx=2048), loads("a-small", num_ctx=2048), loads("b") - 1]
    assert {"a:latest", "b:latest"} == {*api.loaded_models()}
    api.delete("a-small").raise_for_status()


# --- pulling and deleting


def test_a_missing_model_is_pulled_in_lines(api: Api, world: World) -> None:
    for verb in ("show", "generate", "chat", "embed"):
        assert 404 == api.post(f"/api/{verb}", model=world.far).status_code
    lines = api.pull(world.far)
    statuses = list(dict.fromkeys(line["status"] for line in lines))
    assert "pulling manifest" == statuses[0]
    assert ["verifying sha256 digest", "writing manifest", "success"] == statuses[-3:]
    assert all(re.fullmatch("pulling [0-9a-f]{12}", status) for status in statuses[1:-3])
    for line in lines:
        if "total" in line:
            assert re.fullmatch("sha256:[0-9a-f]{64}", line["digest"])
            assert f"pulling {line['digest'][7:19]}" == line["status"]
        else:
            assert ["status"] == list(line) or "digest" in line
    assert 200 == api.post("/api/show", model=world.far).status_code


def test_a_model_that_is_there_is_pulled_again_with_one_line_for_a_part(
    api: Api, world: World
) -> None:
    api.pull(world.far)
    lines = api.pull(world.far)
    parts = [line for line in lines if "total" in line]
    assert [part["total"] for part in parts] == [part["completed"] for part in parts]
    assert len(parts) == len({part["digest"] for part in parts})
    assert {"status": "success"} == lines[-1]


def test_a_pull_without_stream_is_one_answer_at_the_end(api: Api, world: World) -> None:
    answer = api.post("/api/pull", model=world.far, insecure=True, stream=False)
    assert (200, {"status": "success"}) == (answer.status_code, answer.json())
    answer = api.post("/api/pull", model=world.unknown, insecure=True, stream=False)
    error = "pull model manifest: file does not exist"
    assert (500, {"error": error}) == (answer.status_code, answer.json())


def test_an_unknown_model_is_an_error_inside_http_200(api: Api, world: World) -> None:
    error = "pull model manifest: file does not exist"
    assert [{"status": "pulling manifest"}, {"error": error}] == api.pull(world.unknown)


def test_a_client_that_leaves_a_pull_ends_it_and_its_bytes_are_kept(api: Api, world: World) -> None:
    world.throttle(2e6)
    with api.stream("/api/pull", model=world.far, insecure=True) as lines:
        seen = next(done for line in lines for done, _ in parts_of([line]) if done > 1_000_000)
    # Too soon, the next one would join the download of the one that left.
    time.sleep(0.3)
    with api.stream("/api/pull", model=world.far, insecure=True) as lines:
        again = next(parts_of([line])[0][0] for line in lines if "total" in line)
    # Had it gone on by itself, or begun anew, it would be elsewhere.
    assert seen - 500_000 <= again <= seen + 1_000_000
    time.sleep(0.3)
    world.throttle(None)
    assert {"status": "success"} == api.pull(world.far)[-1]


def test_a_download_that_stalls_goes_on_telling_so_and_then_falls_back(
    api: Api, world: World
) -> None:
    # Slow enough that a busy machine sees it stand, and sees it again soon after it fell back.
    world.throttle(2e6)
    world.stall(2_000_000)
    top = told = 0
    with api.stream("/api/pull", model=world.far, insecure=True) as lines:
        for line in lines:
            for done, _ in parts_of([line]):
                told += done == top
                if done < top:
                    break
                top = done
            else:
                continue
            break
        # Lines came all the time, and after a fall it climbs again.
        assert told > 3
        assert 0 < top <= 2_000_000
        assert done < top / 2
        assert done < next(again for line in lines for again, _ in parts_of([line]) if again > done)
    time.sleep(0.3)
    world.stall(None)
    world.throttle(None)
    assert {"status": "success"} == api.pull(world.far)[-1]


def test_a_download_that_stalls_for_a_while_goes_on_by_itself(api: Api, world: World) -> None:
    world.stall(2_000_000, 0.5)
    begin = time.monotonic()
    lines = api.pull(world.far)
    assert time.monotonic() - begin > 0.5
    completed = [done for done, _ in parts_of(lines)]
    assert sorted(completed) == completed
    stood = max(completed.count(done) for done in set(completed) if 0 < done <= 2_000_000)
    assert stood > 3
    assert {"status": "success"} == lines[-1]


def test_a_killed_server_drops_a_pull_and_can_be_asked_again(api: Api, world: World) -> None:
    world.throttle(4e6)
    with api.stream("/api/pull", model=world.far, insecure=True) as lines:
        next(line for line in lines if any(done > 0 for done, _ in parts_of([line])))
        world.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    with pytest.raises(httpx.ConnectError):
        api.get("/api/version")
    world.restart()
    world.throttle(None)
    assert {"status": "success"} == api.pull(world.far)[-1]


def test_a_deleted_model_is_gone_and_is_pulled_from_its_beginning(api: Api, world: World) -> None:
    api.pull(world.far)
    answer = api.delete(world.far)
    assert (200, b"") == (answer.status_code, answer.content)
    assert 404 == api.post("/api/show", model=world.far).status_code
    assert 404 == api.delete(world.far).status_code
    world.throttle(4e6)
    with api.stream("/api/pull", model=world.far, insecure=True) as lines:
        assert next(parts_of([line])[0][0] for line in lines if "total" in line) < 2_000_000
    time.sleep(0.3)
    world.throttle(None)
    assert {"status": "success"} == api.pull(world.far)[-1]


def test_deleting_one_name_leaves_the_others_and_what_is_loaded(api: Api) -> None:
    assert b"" == api.post("/api/copy", source="a", destination="z").raise_for_status().content
    api.load("z", keep_alive=-1)
    assert 200 == api.delete("Z:latest").status_code
    assert ["z:latest"] == api.loaded_models()
    assert 404 == api.post("/api/generate", model="z", keep_alive=0).status_code
    api.load("a")
    assert ["z:latest"] == api.loaded_models()
    assert pytest.approx(FOREVER_S, rel=1e-3) == api.keep_alive_s("z")


# --- loading and generating


@pytest.mark.parametrize("stream", [True, False])
def test_a_load_is_one_json_object_without_times(api: Api, stream: bool) -> None:
    answer = api.post("/api/generate", model="a", stream=stream)
    assert "application/json; charset=utf-8" == answer.headers["content-type"]
    body = answer.json()
    assert body.pop("created_at").endswith("Z")
    assert {"model": "a", "response": "", "done": True, "done_reason": "load"} == body
    assert ["a:latest"] == api.loaded_models()


def test_a_chat_without_messages_loads(api: Api) -> None:
    body = api.ask("chat", model="a", messages=[])
    body.pop("created_at")
    message = {"role": "assistant", "content": ""}
    assert {"model": "a", "message": message, "done": True, "done_reason": "load"} == body
    assert ["a:latest"] == api.loaded_models()


def test_a_model_that_loads_is_not_listed_before_it_answers(api: Api) -> None:
    for _ in range(10):
        answer = api.later("/api/generate", model="slow")
        time.sleep(0.05)
        before = api.loaded_models()
        under_way = not answer.done()
        assert 200 == answer.result().status_code
        assert ["slow:latest"] == api.loaded_models()
        if under_way:
            assert [] == before
            return
        unload(api, "slow")
    pytest.fail("no load was seen under way")


def test_nothing_is_sent_during_a_load_and_a_client_that_leaves_ends_it(
    api: Api, world: World
) -> None:
    with hanging(world, "/api/generate", {"model": "slow", "prompt": "Hi"}) as connection:
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    # Longer than what was left of the load.
    time.sleep(0.5)
    assert [] == api.loaded_models()


def test_requests_for_one_model_share_its_load(api: Api, world: World) -> None:
    before = world.loads()
    answers = [api.later("/api/generate", model="slow") for _ in range(4)]
    assert [200] * 4 == [answer.result().status_code for answer in answers]
    assert 1 == world.loads() - before


@pytest.mark.parametrize(
    ("verb", "asked"), [("generate", {"prompt": "Hi"}), ("chat", {"messages": HELLO})]
)
def test_an_answer_is_cut_at_num_predict_and_measured(api: Api, verb: str, asked: Body) -> None:
    body = api.ask(verb, model="a", stream=False, options={"num_predict": 3}, **asked)
    assert ("length", 3, True) == (body["done_reason"], body["eval_count"], body["done"])
    assert body["prompt_eval_count"] >= 1
    text = body["response"] if verb == "generate" else body["message"]["content"]
    assert 3 == len(text.split())
    times = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    assert {int} == {type(body[key]) for key in times}
    assert body["total_duration"] >= body["load_duration"] + body["eval_duration"]


@pytest.mark.parametrize(
    ("verb", "asked"), [("generate", {"prompt": "Hi"}), ("chat", {"messages": HELLO})]
)
def test_an_answer_comes_in_lines_and_the_last_one_has_the_times(
    api: Api, verb: str, asked: Body
) -> None:
    answer = api.post(f"/api/{verb}", model="a", **asked)
    assert "application/x-ndjson" == answer.headers["content-type"]
    *parts, last = lines_of(answer)
    assert len(parts) > 3
    assert {False} == {part["done"] for part in parts}
    assert (True, "stop") == (last["done"], last["done_reason"])
    assert last["total_duration"] > last["load_duration"] > 0
    assert not [part for part in parts if "total_duration" in part]


@pytest.mark.parametrize(
    ("error", "verb", "body"),
    [
        ('"embed" does not support generate', "generate", {"model": "embed"}),
        ('"embed" does not support generate', "generate", {"model": "embed", "prompt": "Hi"}),
        ('"embed" does not support chat', "chat", {"model": "embed", "messages": HELLO}),
        ('"a" does not support thinking', "generate", {"model": "a", "think": True}),
        ('"a" does not support thinking', "chat", {"model": "a", "think": True}),
    ],
)
def test_a_model_is_not_asked_for_what_it_cannot_do(
    api: Api, error: str, verb: str, body: Body
) -> None:
    answer = api.post(f"/api/{verb}", **body)
    assert (400, {"error": error}) == (answer.status_code, answer.json())
    assert [] == api.loaded_models()


def test_a_thinking_model_may_think(api: Api) -> None:
    api.load("think", think=True)


def test_one_model_answers_one_prompt_at_a_time(api: Api, world: World) -> None:
    with hanging(world, "/api/generate", {"model": "endless", "prompt": "Hi"}) as first:
        assert b"200 OK" in first.recv(100)
        body = {"model": "endless", "prompt": "Hi"}
        with hanging(world, "/api/generate", body) as second:
            second.settimeout(0.3)
            with pytest.raises(TimeoutError):
                second.recv(1)
            # A load-only request needs no slot.
            assert "load" == api.ask("generate", model="endless")["done_reason"]
            # Who leaves frees it.
            first.close()
            second.settimeout(BOUND_S)
            assert b"200 OK" in second.recv(100)


# --- embedding


@pytest.mark.parametrize("asked", [{}, {"input": ""}, {"input": []}, {"input": None}], ids=str)
@pytest.mark.parametrize("name", ["a", "embed"])
def test_embed_without_input_loads_any_model(api: Api, name: str, asked: Body) -> None:
    assert {"model": name, "embeddings": []} == api.ask("embed", model=name, **asked)
    assert [f"{name}:latest"] == api.loaded_models()


def test_embed_gives_equal_texts_equal_vectors(api: Api) -> None:
    body = api.ask("embed", model="embed", input=["x", "y", "x"])
    x, y, again = body.pop("embeddings")
    assert pytest.approx(x, abs=1e-4) == again
    assert pytest.approx(x, abs=1e-4) != y
    assert {len(x)} == {len(y)}
    assert {"model", "total_duration", "load_duration", "prompt_eval_count"} == set(body)
    assert body["total_duration"] >= body["load_duration"] > 0
    (alone,) = api.ask("embed", model="embed", input="x")["embeddings"]
    assert pytest.approx(x, abs=1e-4) == alone


def test_a_completion_model_does_not_embed(api: Api) -> None:
    answer = api.post("/api/embed", model="a", input="x")
    error = "This server does not support embeddings. Start it with `--embeddings`"
    assert (501, {"error": error}) == (answer.status_code, answer.json())
    assert ["a:latest"] == api.loaded_models()


# --- keep-alives


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
    ids=str,
)
@pytest.mark.parametrize("verb", ["generate", "chat", "embed"])
def test_a_keep_alive_that_go_cannot_read_is_refused_before_anything_else(
    api: Api, verb: str, error: str, keep_alive: object
) -> None:
    answer = api.post(f"/api/{verb}", model="nix", keep_alive=keep_alive)
    assert (400, {"error": error}) == (answer.status_code, answer.json())


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
        (FOREVER_S, -1),
        (FOREVER_S, -0.5),
        (FOREVER_S, "-1m"),
        (FOREVER_S, "-1s"),
    ],
    ids=str,
)
def test_the_keep_alive_is_what_was_asked(api: Api, seconds: float, keep_alive: object) -> None:
    api.load("a", keep_alive=keep_alive)
    assert pytest.approx(seconds, abs=100, rel=1e-3) == api.keep_alive_s("a")


def test_a_model_leaves_when_its_keep_alive_ends(api: Api) -> None:
    api.load("a", keep_alive=0.3)
    until(lambda: [] == api.loaded_models())


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", 0.0], ids=repr)
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_keep_alive_of_zero_unloads(
    api: Api, world: World, verb: str, keep_alive: object
) -> None:
    api.load("a")
    before = world.loads()
    for name in ("a", "b"):
        assert "unload" == api.ask(verb, model=name, keep_alive=keep_alive)["done_reason"]
    until(lambda: [] == api.loaded_models())
    assert before == world.loads()


def test_even_an_embedding_model_is_unloaded_by_generate(api: Api) -> None:
    api.ask("embed", model="embed")
    assert "unload" == api.ask("generate", model="embed", keep_alive=0)["done_reason"]
    until(lambda: [] == api.loaded_models())


def test_a_load_whose_keep_alive_overflows_leaves_nothing_loaded(api: Api) -> None:
    api.load("a", keep_alive=10_000_000_000)
    until(lambda: [] == api.loaded_models())


@pytest.mark.parametrize("keep_alive", [0, 10_000_000_000, 9.3e9])
def test_a_prompt_with_no_keep_alive_or_one_that_overflows_leaves_nothing_loaded(
    api: Api, world: World, keep_alive: float
) -> None:
    before = world.loads()
    body = api.ask("generate", model="a", prompt="Hi", keep_alive=keep_alive, stream=False)
    assert "stop" == body["done_reason"]
    until(lambda: [] == api.loaded_models())
    assert 1 == world.loads() - before


def test_only_a_request_that_names_a_keep_alive_changes_it(api: Api) -> None:
    api.load("a", keep_alive=-1)
    asked: Body = {"model": "a", "options": {"num_predict": 1}}
    api.load("a")
    api.load("a", keep_alive=None)
    api.ask("generate", prompt="Hi", stream=False, **asked)
    api.ask("chat", messages=HELLO, stream=False, **asked)
    api.ask("embed", model="a")
    api.post(CHAT, model="a", messages=HELLO, max_tokens=1).raise_for_status()
    assert pytest.approx(FOREVER_S, rel=1e-3) == api.keep_alive_s("a")
    api.load("a", keep_alive="10m")
    api.load("a")
    assert pytest.approx(600, abs=100) == api.keep_alive_s("a")


@pytest.mark.parametrize(("seconds", "asked"), [(300, {}), (600, {"keep_alive": "10m"})], ids=str)
def test_a_reload_loses_the_keep_alive(api: Api, seconds: float, asked: Body) -> None:
    api.load("a", keep_alive=-1)
    api.load("a", options={"num_ctx": 2048}, **asked)
    assert pytest.approx(seconds, abs=100) == api.keep_alive_s("a")


def test_a_keep_alive_does_not_end_while_the_model_answers(api: Api) -> None:
    with api.busy(keep_alive=0.1):
        time.sleep(0.5)
        assert ["endless:latest"] == api.loaded_models()
    until(lambda: [] == api.loaded_models())


# --- options that make the server load again


def loads_of(api: Api, *bodies: Body) -> int:
    before = api.world.loads()
    for body in bodies:
        api.load("a", **body)
        assert ["a:latest"] == api.loaded_models()
    return api.world.loads() - before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"num_ctx": 2048}),
        ({"num_ctx": 2048}, {}),
        ({"num_ctx": 2048}, {"num_ctx": 1024}),
        ({"num_ctx": 2048}, {"num_ctx": 1_000_000}),
        ({}, {"num_batch": 256}),
        ({"num_batch": 256}, {}),
        ({}, {"num_gpu": 0}),
        ({}, {"num_gpu": 1}),
        ({}, {"num_thread": 1}),
        ({"num_thread": 1}, {}),
        ({}, {"use_mmap": True}),
        ({"use_mmap": True}, {}),
        ({"use_mmap": False}, {}),
        ({}, {"main_gpu": 0}),
        ({"main_gpu": 0}, {}),
        ({}, {"draft_num_predict": 4}),
        ({"draft_num_predict": 4}, {}),
    ],
    ids=str,
)
def test_other_runner_options_load_the_model_again(api: Api, first: Body, second: Body) -> None:
    assert 2 == loads_of(api, {"options": first}, {"options": second})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({}, {"num_ctx": 4096}),
        ({}, {"num_ctx": 4096.0}),
        ({}, {"num_ctx": None}),
        ({"num_ctx": 4096}, {}),
        ({}, {"num_ctx": 1_000_000}),
        ({"num_ctx": 1}, {"num_ctx": -5}),
        ({}, {"num_batch": 512}),
        ({}, {"num_gpu": -1}),
        ({}, {"num_gpu": -2}),
        ({"num_gpu": 0}, {}),
        ({}, {"use_mmap": False}),
        ({}, {"draft_num_predict": 0}),
        ({}, {"temperature": 1, "num_predict": 5, "seed": 1, "stop": ["x"], "nix": True}),
        ({}, {"top_k": 1, "top_p": 0.5, "min_p": 0.1, "num_keep": 2, "repeat_penalty": 1.5}),
    ],
    ids=str,
)
def test_equal_runner_options_and_all_others_do_not(api: Api, first: Body, second: Body) -> None:
    assert 1 == loads_of(api, {"options": first}, {"options": second})


@pytest.mark.parametrize(
    ("loads", "second"),
    [
        (2, {"shift": False}),
        (1, {"shift": True}),
        (1, {"think": False}),
        (1, {"raw": True}),
        (1, {"system": "Be short.", "format": "json", "truncate": False}),
        (1, {"template": "{{ .Prompt }}"}),
    ],
    ids=str,
)
def test_of_all_else_in_a_request_only_shift_loads_again(
    api: Api, loads: int, second: Body
) -> None:
    assert loads == loads_of(api, {}, second)


@pytest.mark.parametrize(
    ("context", "num_ctx"), [(4096, None), (2048, 2048), (4, 0), (4, 1.5), (4096, 1_000_000)]
)
def test_the_context_is_told_and_bounded(api: Api, context: int, num_ctx: float | None) -> None:
    api.load("a", options={"num_ctx": num_ctx})
    assert [context] == [model["context_length"] for model in api.models()]


@pytest.mark.parametrize(
    ("error", "options"),
    [
        ('option "num_ctx" must be of type integer', {"num_ctx": "4096"}),
        ('option "num_ctx" must be of type integer', {"num_ctx": True}),
        ('option "use_mmap" must be of type boolean', {"use_mmap": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["generate", "chat", "embed"])
def test_an_option_of_another_type_is_a_server_error(
    api: Api, verb: str, error: str, options: Body
) -> None:
    answer = api.post(f"/api/{verb}", model="a", options=options)
    assert (500, {"error": error}) == (answer.status_code, answer.json())
    assert [] == api.loaded_models()


def test_a_reload_waits_for_the_answer_under_way(api: Api, world: World) -> None:
    with api.busy():
        before = world.loads()
        answer = api.later("/api/generate", model="endless", options={"num_ctx": 2048})
        time.sleep(0.5)
        assert (False, before) == (answer.done(), world.loads())
    assert 200 == answer.result().status_code
    assert [2048] == [model["context_length"] for model in api.models()]


# --- eviction


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2], ids=str)
def test_of_equal_keep_alives_the_first_weights_go_whatever_was_used_last(
    api: Api, order: tuple[int, ...]
) -> None:
    names = api.by_weights("a", "b", "c", "d")
    for number in order:
        api.load(names[number])
    api.load(names[0])
    api.load(names[3])
    assert {f"{name}:latest" for name in names[1:]} == set(api.loaded_models())


def test_the_shortest_keep_alive_goes_first_and_ps_lists_the_longest_first(api: Api) -> None:
    api.load("a", keep_alive=-1)
    api.load("b", keep_alive="1m")
    api.load("c", keep_alive="10m")
    assert ["a:latest", "c:latest", "b:latest"] == api.loaded_models()
    api.load("d")
    assert ["a:latest", "c:latest", "d:latest"] == api.loaded_models()


def test_a_keep_alive_without_end_is_no_protection(api: Api) -> None:
    names = api.by_weights("a", "b", "c", "d")
    for name in names:
        api.load(name, keep_alive=-1)
    assert {f"{name}:latest" for name in names[1:]} == set(api.loaded_models())


def test_an_idle_model_goes_before_a_busy_one_with_a_shorter_keep_alive(api: Api) -> None:
    with api.busy(keep_alive=60):
        for name in ("a", "b"):
            api.load(name, keep_alive=-1)
        api.load("c")
        assert 3 == len(api.loaded_models())
        assert {"endless:latest", "c:latest"} < set(api.loaded_models())


def test_a_copy_is_another_name_for_the_same_runner(api: Api, world: World) -> None:
    api.post("/api/copy", source="a", destination="n/z:1").raise_for_status()
    before = world.loads()
    api.load("n/z:1")
    api.load("a")
    assert (["n/z:1"], 1) == (api.loaded_models(), world.loads() - before)
    assert 200 == api.delete("n/z:1").status_code


# --- OpenAI's API


def test_v1_chats(api: Api) -> None:
    answer = api.post(CHAT, model="A:latest", messages=HELLO, max_tokens=3)
    assert "application/json" == answer.headers["content-type"]
    body = answer.raise_for_status().json()
    (choice,) = body["choices"]
    assert ("chat.completion", "A:latest") == (body["object"], body["model"])
    assert body["id"].startswith("chatcmpl-")
    assert ("fp_ollama", int) == (body["system_fingerprint"], type(body["created"]))
    assert (0, "length") == (choice["index"], choice["finish_reason"])
    assert ("assistant", 3) == (
        choice["message"]["role"],
        len(choice["message"]["content"].split()),
    )
    usage = body["usage"]
    assert (3, usage["total_tokens"]) == (
        usage["completion_tokens"],
        usage["prompt_tokens"] + 3,
    )
    assert ["a:latest"] == api.loaded_models()


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True}}], ids=str)
def test_v1_chats_in_events(api: Api, asked: Body) -> None:
    answer = api.post(CHAT, model="a", messages=HELLO, max_tokens=3, stream=True, **asked)
    assert "text/event-stream" == answer.headers["content-type"]
    *events, done, rest = answer.text.split("\n\n")
    assert ("data: [DONE]", "") == (done, rest)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {("chat.completion.chunk", "a", "fp_ollama")} == {
        (chunk["object"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks
    }
    assert 1 == len({chunk["id"] for chunk in chunks})
    if asked:
        usage = chunks.pop()
        assert ([], 3) == (usage["choices"], usage["usage"]["completion_tokens"])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [None] * 3 + ["length"] == [choice["finish_reason"] for choice in choices]
    assert ["role", "content"] == list(choices[0]["delta"])
    assert {("content",)} == {tuple(choice["delta"]) for choice in choices[1:-1]}
    assert {} == choices[-1]["delta"]


def test_v1_embeds(api: Api) -> None:
    answer = api.post(EMBED, model="embed", input=["x", "y", ""])
    assert "application/json" == answer.headers["content-type"]
    body = answer.raise_for_status().json()
    assert ("list", "embed") == (body["object"], body["model"])
    assert [("embedding", 0), ("embedding", 1), ("embedding", 2)] == [
        (one["object"], one["index"]) for one in body["data"]
    ]
    assert 1 == len({len(one["embedding"]) for one in body["data"]})
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    (native,) = api.ask("embed", model="embed", input="y")["embeddings"]
    assert pytest.approx(native, abs=1e-4) == body["data"][1]["embedding"]
    alone = api.post(EMBED, model="embed", input="").raise_for_status().json()
    assert 1 == len(alone["data"])


@pytest.mark.parametrize(
    ("status", "words", "path", "body"),
    [
        (400, "[] is too short - 'messages'", CHAT, {}),
        (400, "[] is too short - 'messages'", CHAT, {"model": "a", "messages": []}),
        (400, "model is required", CHAT, {"messages": HELLO}),
        (400, "invalid model name", CHAT, {"model": "a b", "messages": HELLO}),
        (400, "cannot unmarshal", CHAT, {"model": 3, "messages": HELLO}),
        (400, '"embed" does not support chat', CHAT, {"model": "embed", "messages": HELLO}),
        (404, "model 'nix' not found", CHAT, {"model": "nix", "messages": HELLO}),
        (404, "model 'nix' not found", CHAT, {"model": "nix", "messages": HELLO, "stream": True}),
        (500, "", CHAT, {"model": "broken", "messages": HELLO}),
        (400, "invalid input", EMBED, {"model": "embed"}),
        (400, "invalid input", EMBED, {"model": "embed", "input": []}),
        (400, "invalid input type", EMBED, {"model": "embed", "input": 3}),
        (404, 'model "nix" not found, try pulling it', EMBED, {"model": "nix", "input": "x"}),
        (404, "model '' not found", EMBED, {"input": "x"}),
        (501, "This server does not support embeddings.", EMBED, {"model": "a", "input": "x"}),
    ],
)
def test_v1_refuses_in_openais_way(
    api: Api, status: int, words: str, path: str, body: Body
) -> None:
    answer = api.post(path, **body)
    error = answer.json()["error"]
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    assert (status, kind) == (answer.status_code, error.pop("type"))
    assert words in error.pop("message")
    assert {"param": None, "code": None} == error


def test_v1_has_the_servers_options_and_ignores_others(api: Api, world: World) -> None:
    before = world.loads()
    api.load("a", options={"num_ctx": 2048}, keep_alive=-1)
    body = {"model": "a", "messages": HELLO, "max_tokens": 1, "keep_alive": "nonsense"}
    answer = api.post(CHAT, options={"num_ctx": 2048}, **body)
    assert 200 == answer.status_code
    assert [4096] == [model["context_length"] for model in api.models()]
    assert 2 == world.loads() - before
    assert pytest.approx(300, abs=100) == api.keep_alive_s("a")


# --- what dies


def test_a_runner_that_dies_ends_the_answer_and_stays_listed(api: Api, world: World) -> None:
    api.load("endless")
    before = world.loads()
    answer = api.later("/api/generate", model="endless", prompt="Hi", stream=False)
    time.sleep(0.3)
    world.kill_runner("endless")
    ended = answer.result()
    assert (500, {"error": RUNNER_DIED}) == (ended.status_code, ended.json())
    assert (["endless:latest"], before) == (api.loaded_models(), world.loads())
    api.load("endless")
    assert 1 == world.loads() - before


def test_a_runner_that_dies_ends_the_stream_and_stays_listed(api: Api, world: World) -> None:
    api.load("endless")
    before = world.loads()
    with api.stream("/api/generate", model="endless", prompt="Hi") as parts:
        assert "response" == [*next(parts)][2]
        world.kill_runner("endless")
        *_, last = parts
    assert {"error": RUNNER_DIED} == last
    assert (["endless:latest"], before) == (api.loaded_models(), world.loads())
    api.load("endless")
    assert 1 == world.loads() - before


def test_a_runner_that_dies_ends_an_answer_of_v1(api: Api, world: World) -> None:
    api.load("endless")
    answer = api.later(CHAT, model="endless", messages=HELLO, stream=False)
    time.sleep(0.3)
    world.kill_runner("endless")
    ended = answer.result()
    error = {"message": RUNNER_DIED, "type": "api_error", "param": None, "code": None}
    assert (500, {"error": error}) == (ended.status_code, ended.json())


def test_a_runner_that_dies_ends_a_stream_of_v1(api: Api, world: World) -> None:
    api.load("endless")
    body = {"model": "endless", "messages": HELLO, "stream": True}
    with api.http.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        world.kill_runner("endless")
        *_, last = (line for line in lines if line)
    # An empty one of no model is all that is told, and no [DONE] follows.
    chunk = json.loads(last.removeprefix("data: "))
    assert ("", "") == (chunk["model"], chunk["choices"][0]["delta"]["content"])


def test_the_request_after_a_runner_died_loads_again(api: Api, world: World) -> None:
    api.ask("embed", model="embed", input="x")
    before = world.loads()
    world.kill_runner("embed")
    time.sleep(0.1)
    assert ["embed:latest"] == api.loaded_models()
    assert 1 == len(api.ask("embed", model="embed", input="x")["embeddings"])
    assert (1, ["embed:latest"]) == (world.loads() - before, api.loaded_models())


def test_a_server_that_was_killed_comes_back_cold_with_its_models(api: Api, world: World) -> None:
    api.load("a", keep_alive=-1)
    world.kill()
    world.restart()
    assert [] == api.loaded_models()
    api.load("a")


# --- helpers


def unload(api: Api, name: str) -> None:
    api.ask("generate", model=name, keep_alive=0)
    until(lambda: f"{name}:latest" not in api.loaded_models())


@contextmanager
def hanging(world: World, path: str, body: Body) -> Iterator[socket.socket]:
    """Send a request and wait for nothing; leaving closes the connection."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    url = httpx.URL(world.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + content)
        yield connection
