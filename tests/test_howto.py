"""The examples of the how-to pages run, and each page shows its example."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from tests.conftest import LLAMA, Suite
from tests.front import front
from tests.recipes import EXAMPLES, JOBS, Machine, stand_ins, steps_of
from tests.test_serve import SERVER

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from tests.front import Answer

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "how-to").glob("*.md"))
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
N2 = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
MODELS = [
    replace(LLAMA, present=True),
    ScriptedModel("qwen3:0.6b", present=True, capabilities=("completion", "tools", "thinking")),
    ScriptedModel("nomic-embed-text", present=True, capabilities=("embedding",)),
    ScriptedModel("gemma3:4b", present=True, capabilities=("completion", "vision")),
]
# What services of CI give the steps of a job.
FOLDERS = ("AGENT_TEMPDIRECTORY", "MODELS_DIR", "RUNNER_TEMP")
BASH = shutil.which("bash") or "bash"
# The plugins that pages combine ours with, by what shows that a command needs them.
NEEDED = {
    "-n": "xdist",
    "--dist": "xdist",
    "--timeout": "timeout",
    "--record-mode": "pytest_recording.plugin",
    "--block-network": "pytest_recording.plugin",
}


@pytest.fixture
def suite(suite: Suite) -> Suite:
    """An empty suite whose server has the models of all examples."""
    for model in MODELS:
        suite.ollama.add(model)
    return suite


def copied(suite: Suite, name: str) -> Suite:
    """Put an example into *suite*."""
    shutil.copytree(EXAMPLES / name, suite.pytester.path, dirs_exist_ok=True)
    return suite


def loaded(suite: Suite) -> list[str]:
    """Return the names of the models that were loaded, in turn."""
    return [load.model for load in suite.ollama.loads]


def machine(suite: Suite, *stubs: str) -> Machine:
    """Return a shell in the folder of *suite*, whose server it knows; *stubs* do nothing there."""
    folder = suite.pytester.path
    env = {"OLLAMA_HOST": suite.ollama.url, "CI": "true"}
    env["PYTEST_ADDOPTS"] = "-p ollama_warmup -p xdist"
    return Machine(folder, [stand_ins(folder / "bin", *stubs)], folder / "installed", env)


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the blocks of code in *language* on a page."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return [str(one) for one in found]


@pytest.mark.parametrize(
    ("name", "passed", "models"),
    [
        ("marks", 8, {"llama3.2:1b", "nomic-embed-text:latest", "qwen3:0.6b"}),
        ("session_fixture", 2, {"llama3.2:1b"}),
        ("aliases", 2, {"llama3.2:1b", "nomic-embed-text:latest"}),
        ("embeddings", 2, {"nomic-embed-text:latest"}),
        ("capabilities", 2, {"qwen3:0.6b", "gemma3:4b"}),
        ("context_length", 2, {"llama3.2:1b"}),
        ("background", 3, {"llama3.2:1b"}),
        ("many_models", 6, {"llama3.2:1b", "qwen3:0.6b"}),
        ("workers", 8, {"llama3.2:1b"}),
    ],
)
@N2
def test_an_example_passes_and_loads_each_model_once(
    suite: Suite, name: str, passed: int, models: set[str], workers: list[str]
) -> None:
    run = copied(suite, name).run(*workers)
    assert {"passed": passed} == run.counts
    assert sorted(models) == sorted(loaded(suite))


def test_marks_select_tests(suite: Suite) -> None:
    copied(suite, "marks")
    assert {"passed": 1} == suite.run("-m", "not requires_model", "test_chat.py").counts
    assert [] == suite.ollama.requests
    assert {"passed": 1} == suite.run("-k", "test_greeting", "test_chat.py").counts
    assert ["llama3.2:1b"] == loaded(suite)


def test_a_suite_with_its_own_mark_marks_ollama_tests_with_the_longer_name(suite: Suite) -> None:
    run = copied(suite, "mark_clash").run("-rs")
    assert {"passed": 1, "skipped": 1} == run.counts
    assert "spaCy pipeline en_core_web_sm is not installed" in run.out
    assert ["llama3.2:1b"] == loaded(suite)
    assert {"skipped": 1} == suite.run("-m", "not requires_ollama_model").counts


def test_an_alias_means_another_model_for_one_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(suite, "aliases")
    assert {"passed": 2} == suite.run("--ollama-alias", "chat=qwen3:0.6b").counts
    assert {"qwen3:0.6b", "nomic-embed-text:latest"} == set(loaded(suite))
    suite.ollama.forget()
    monkeypatch.setenv("PYTEST_ADDOPTS", "--ollama-alias chat=gemma3:4b")
    assert {"passed": 2} == suite.run().counts
    assert "gemma3:4b" in loaded(suite)


def test_tests_skip_locally_and_fail_in_ci(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(suite, "skip_or_fail")
    suite.ollama.add(replace(LLAMA, in_registry=False, present=False))
    run = suite.run("-rs")
    assert {"skipped": 2} == run.counts
    assert [] == suite.ollama.pulls
    monkeypatch.setenv("CI", "true")
    run = suite.run("-rs")
    # A test that can't be set up is an error.
    assert {"error": 1, "skipped": 1} == run.counts
    assert {"llama3.2:1b", "llama3.1:70b"} == set(suite.ollama.pulls)
    assert {"skipped": 2} == suite.run("--ollama-ci=no").counts
    assert {"skipped": 2} == suite.run("--ollama-on-unavailable=skip").counts
    run = suite.run("--ollama-on-unavailable=exit", "-k", "greeting")
    assert 2 == run.ret


def test_what_a_model_cannot_do_is_said(suite: Suite) -> None:
    suite.ollama.add(ScriptedModel("qwen3:0.6b", present=True))
    run = copied(suite, "capabilities").run("-rs")
    assert {"passed": 1, "skipped": 1} == run.counts
    assert (
        "qwen3:0.6b cannot do tools: the server says it can do completion. [lacks-capability]"
        in run.out
    )


def test_the_listed_context_length_is_loaded_once(suite: Suite) -> None:
    run = copied(suite, "context_length").run("-v")
    assert [("llama3.2:1b", 8192)] == [
        (load.model, load.options["num_ctx"]) for load in suite.ollama.loads
    ]
    assert "num_ctx=8192" in run.out


def test_many_workers_share_one_slot(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True, eval_s=0.05))
    assert {"passed": 8} == copied(suite, "workers").run("-n4", "--ollama-max-parallel=1").counts


@N2
def test_groups_load_each_model_once_in_little_memory(suite: Suite, workers: list[str]) -> None:
    suite.ollama.scheduler._max_loaded = 1
    copied(suite, "many_models")
    if not workers:
        suite.run()
        assert 3 <= len(loaded(suite))
        suite.ollama.unload("qwen3:0.6b")
        suite.ollama.unload("llama3.2:1b")
        suite.ollama.forget()
    assert {"passed": 6} == suite.run("--ollama-group-by-model", *workers).counts
    assert ["llama3.2:1b", "qwen3:0.6b"] == loaded(suite)


def test_tests_without_a_model_run_first(suite: Suite) -> None:
    run = copied(suite, "background").run("--ollama-background", "-v")
    assert {"passed": 3} == run.counts
    order = re.findall(r"::test_(\w+) PASSED", run.out)
    assert ["price", "name", "advice"] == order


def test_workers_are_spread_over_several_servers(suite: Suite) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(Emulator(MODELS)) for _ in range(2)]
        hosts = ",".join(one.url for one in others)
        run = copied(suite, "workers").run("-n4", f"--ollama-host={hosts}")
        assert {"passed": 8} == run.counts
        assert [["llama3.2:1b"]] * 2 == [[load.model for load in one.loads] for one in others]
        assert all(one.calls("generate") for one in others)


def test_offline_a_run_neither_pulls_nor_asks_a_registry(suite: Suite) -> None:
    there = ScriptedModel("llama3.2:1b", present=True, digest="baf6a787fdff" + "0" * 52)
    suite.ollama.add(replace(there, in_registry=False))
    copied(suite, "offline")
    assert {"passed": 1} == suite.run().counts
    suite.ollama.add(replace(there, digest="c" * 64))
    run = suite.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "is another version than the pinned one" in run.out
    suite.ollama.add(replace(there, present=False))
    run = suite.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "is not pulled" in run.out
    assert [] == suite.ollama.pulls


def test_what_is_pulled_is_packed_as_it_lies_there(suite: Suite) -> None:
    store = suite.pytester.path / ".ollama" / "models"
    for name in ("blobs", "manifests"):
        (store / name).mkdir(parents=True)
    script = (EXAMPLES / "offline" / "copy-models.sh").read_text("utf-8")
    with machine(suite) as shell:
        assert 0 == shell.run(["sh", "-c", script], {}), shell.output
    assert (suite.pytester.path / "models.tar").exists()


def test_a_container_serves_the_run_and_stops_with_it(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for testcontainers, which needs Docker."""
    copied(suite, "testcontainers")
    suite.write(
        {
            "testcontainers/__init__.py": "",
            "testcontainers/community/__init__.py": "",
            "testcontainers/community/ollama.py": """
                import os

                class OllamaContainer:
                    def __init__(self, image, ollama_home):
                        assert ollama_home.is_dir()
                    def start(self):
                        print("started", file=open("log", "a"))
                        return self
                    def stop(self):
                        print("stopped", file=open("log", "a"))
                    def get_endpoint(self):
                        return os.environ["CONTAINER"]
            """,
        }
    )
    monkeypatch.setenv("CONTAINER", suite.ollama.url)
    monkeypatch.setenv("OLLAMA_HOST", "")
    monkeypatch.setenv("HOME", str(suite.pytester.path))
    monkeypatch.syspath_prepend(suite.pytester.path)
    assert {"passed": 1} == suite.run("-n2", "-p", "no:cacheprovider").counts
    assert "started\nstopped\n" == (suite.pytester.path / "log").read_text("utf-8")
    suite.run("-m", "not requires_model")
    assert "started\nstopped\n" == (suite.pytester.path / "log").read_text("utf-8")


@N2
def test_a_private_server_has_the_address_of_all_variables(
    suite: Suite, workers: list[str]
) -> None:
    program = suite.pytester.path / "server.py"
    copied(suite, "serve").write(
        {
            "server.py": SERVER.replace('"a:1"', '"llama3.2:1b"'),
            "test_address.py": """
                import os, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_address(ollama_host):
                    assert os.environ["OLLAMA_BASE_URL"] == ollama_host
                    assert os.environ["OPENAI_BASE_URL"] == f"{ollama_host}/v1"
            """,
        }
    )
    os.environ.pop("OLLAMA_HOST")
    command = f"'{sys.executable}' '{program}'"
    run = suite.run(f"--ollama-serve-command={command}", *workers)
    assert {"passed": 2} == run.counts
    assert [] == suite.ollama.requests


def test_a_gateway_with_a_path_and_a_password(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(suite, "gateway")
    basic = f"Basic {base64.b64encode(b'ann:s3cret').decode()}"

    def answer(request: BaseHTTPRequestHandler, path: str) -> Answer | None:
        if not request.path.startswith("/ollama/"):
            return 404, "text/plain", b"not here"
        if basic != request.headers.get("Authorization"):
            return 401, "text/plain", b"no access"
        return None

    with front(suite.ollama.port, answer, "/ollama") as address:
        monkeypatch.setenv("OLLAMA_HOST", f"http://ann:s3cret@{address}/ollama")
        run = suite.run("-n2")
        assert {"passed": 2} == run.counts
        assert "s3cret" not in run.out + run.err
        monkeypatch.setenv("OLLAMA_HOST", f"http://{address}/ollama")
        run = suite.run("-rs")
        assert {"skipped": 2} == run.counts
        assert "refuses access (HTTP 401" in run.out


def test_recorded_tests_need_no_server(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(suite, "recorded")
    monkeypatch.delenv("OLLAMA_HOST")
    monkeypatch.setenv("CI", "true")
    plugin = ["-p", "pytest_recording.plugin"]
    for args in ([], ["--record-mode=none", "--block-network"], ["-n2"]):
        run = suite.run(*plugin, *args)
        assert ({"passed": 1}, []) == (run.counts, run.ours)
    monkeypatch.setenv("OLLAMA_HOST", suite.ollama.url)
    assert {"passed": 1} == suite.run(*plugin, "--record-mode=rewrite").counts
    assert ["llama3.2:1b"] == loaded(suite)


def test_a_suite_that_uses_vcrpy_itself_is_replayed_with_the_plugin_off(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(suite, "vcrpy")
    monkeypatch.delenv("OLLAMA_HOST")
    assert {"passed": 1} == suite.run("--ollama-off").counts
    (suite.pytester.path / "cassettes" / "greeting.yaml").unlink()
    monkeypatch.setenv("OLLAMA_HOST", suite.ollama.url)
    assert {"passed": 1} == suite.run().counts
    assert ["llama3.2:1b"] == loaded(suite)
    assert (suite.pytester.path / "cassettes" / "greeting.yaml").exists()


@N2
def test_respx(suite: Suite, workers: list[str]) -> None:
    assert {"passed": 2} == copied(suite, "respx").run(*workers).counts
    assert ["llama3.2:1b"] == loaded(suite)


@pytest.mark.parametrize(("name", "passed"), [("pytest_httpx", 3), ("pytest_socket", 2)])
def test_plugins_that_are_not_in_the_test_group(suite: Suite, name: str, passed: int) -> None:
    for path in (EXAMPLES / name).glob("*.py"):
        compile(path.read_text("utf-8"), path, "exec")
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    assert {"passed": passed} == copied(suite, name).run("-p", name).counts
    assert ["llama3.2:1b"] == loaded(suite)


def test_limits_of_pytest_timeout(suite: Suite) -> None:
    """That a load does not count towards them is tested in tests/test_guard.py."""
    run = copied(suite, "timeouts").run("-p", "timeout")
    assert {"passed": 2} == run.counts
    assert "timeout: 30.0s" in run.out


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_the_steps_of_a_job_run_the_tests_with_their_models(suite: Suite, job: Path) -> None:
    """With stand-ins for what installs something, and for Ollama: the server is the suite's."""
    copied(suite, "marks")
    stubs = ("curl", "sudo", "tar", "apt-get", "python", "ollama", "nohup", "sh")
    content = job.read_text("utf-8")
    listed = re.findall(r"OLLAMA_PRELOAD_MODELS: (.*)", content)
    env = {name: str(suite.pytester.path / name) for name in FOLDERS}
    env |= {"OLLAMA_VERSION": "1", **({"OLLAMA_PRELOAD_MODELS": listed[0]} if listed else {})}
    with machine(suite, *stubs) as shell:
        for number, script in enumerate(steps_of(job)):
            # No server of its own: what it would start is a stand-in.
            script = script.replace("--ollama-serve ", "").replace("--ollama-serve\n", "\n")
            script = script.removesuffix(" --ollama-serve")
            env["GITHUB_OUTPUT"] = str(suite.pytester.path / f"output-{number}")
            if "tail -n 200" in script:
                continue
            code = shell.run([BASH, "-eo", "pipefail", "-c", script], env)
            assert 0 == code, (script, shell.output)
        assert "8 passed" in shell.output
    assert {"llama3.2:1b", "nomic-embed-text:latest", "qwen3:0.6b"} == set(loaded(suite))
    assert "pytest-ollama-warmup" in (suite.pytester.path / "installed").read_text("utf-8")


def test_every_example_is_on_a_page() -> None:
    pages = "".join(page.read_text("utf-8") for page in DOCS.rglob("*.md"))
    suffixes = (".py", ".toml", ".ini", ".yml", ".yaml", ".sh", ".conf")
    files = [path for path in EXAMPLES.rglob("*") if path.suffix in suffixes]
    assert len(files) > 30
    for path in files:
        if "cassettes" not in path.parts:
            assert f"examples/{path.relative_to(EXAMPLES).as_posix()}" in pages, path


@EACH_PAGE
def test_commands_of_a_page_have_options_that_exist(suite: Suite, page: Path) -> None:
    suite.write({"test_it.py": "def test_it(): pass"})
    for line in "".join(blocks_of(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if "pytest" not in words:
            continue
        args = words[words.index("pytest") + 1 :]
        needed = {plugin for arg in args for sign, plugin in NEEDED.items() if arg.startswith(sign)}
        plugins = [part for plugin in sorted(needed - {"xdist"}) for part in ("-p", plugin)]
        tests = [arg for arg in args if arg.endswith(".py")]
        run = suite.run(*plugins, *[arg for arg in args if arg not in tests], "--collect-only")
        assert run.ret in (0, 5), (line, run.out, run.err)
