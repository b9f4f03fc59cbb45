"""A suite of a user, run for real: files and arguments in, outcomes and output out."""

from __future__ import annotations

import os
import re
import socket
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

# httpx imports it with its first client: where that is in a test that uses pytester, it would be
# forgotten after that test, and a second copy raise what httpx does not know.
import httpcore  # noqa: F401
import hypothesis
import pytest

from pytest_ollama_warmup.config.settings import CI_VARIABLES
from pytest_ollama_warmup.emulator import Emulator, ScriptedModel
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from tests import forked

# Timing never decides a test: on a busy machine an example takes as long as it takes.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
# Its tests are imported, and else would fail without a word of why.
pytest.register_assert_rewrite("tests.contract")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_ollama_warmup.emulator import Request

LLAMA = ScriptedModel("llama3.2:1b", size=1_300_000, capabilities=("completion",))
ONE_TEST = {
    "test_chat.py": """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        def test_tone():
            pass
    """
}


@dataclass(frozen=True)
class Result:
    """How a run ended, and what it printed."""

    ret: int
    out: str
    err: str

    @property
    def counts(self) -> dict[str, int]:
        """The outcomes of pytest's last line: ``{"passed": 2}``."""
        last = [line for line in self.out.splitlines() if re.search(r" in \d+\.\d+s", line)]
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)", last[-1])
        return {name.removesuffix("s") if "error" in name else name: int(n) for n, name in found}

    @property
    def ours(self) -> list[str]:
        """What is said after ``ollama:``, each with the lines that belong to it, not indented."""
        said = re.findall(r"^ollama: (.*(?:\n {8}\S.*)*)", self.out, flags=re.MULTILINE)
        return [one.rstrip().replace("\n" + 8 * " ", "\n") for one in said]

    @property
    def table(self) -> list[str]:
        """The lines of the summary: models, what was found out, and how long it took."""
        lines = self.out.splitlines()
        starts = [i for i, line in enumerate(lines) if " ollama models " in line]
        if not starts:
            return []
        rest = lines[starts[0] + 1 :]
        end = next(
            (
                i
                for i, line in enumerate(rest)
                if not re.match(r"[✓✗!+x] |  (→|->) |ready after ", line)
            ),
            None,
        )
        return rest[:end]


def is_ours(request: Request) -> bool:
    """Whether the plugin has sent a request."""
    return request.headers.get("user-agent") == "pytest-ollama-warmup"


def is_plain(request: Request) -> bool:
    """Whether a request was sent without httpx: the early ones, and the looks between tests."""
    return is_ours(request) and "accept" not in request.headers


def is_early(request: Request) -> bool:
    """Whether a request was sent before conftests were imported: one on each connection."""
    return is_plain(request) and request.headers.get("connection") == "close"


class UserSuite:
    """A user's suite in an empty folder."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def write(self, files: dict[str, str]) -> None:
        """Write *files*, by name; sources may be indented."""
        for name, text in files.items():
            path = self.pytester.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.stat().st_mtime if path.exists() else 0
            path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
            if before:
                # Of two sources of one length, written within one second, the first would run:
                # Python, and pytest 8 too, know by length and second whether it is compiled.
                os.utime(path, (before + 2, before + 2))

    def command(self, *args: str) -> list[str]:
        """Return the command that runs pytest; xdist takes part where *args* distribute."""
        distributed = any(arg.startswith(("-n", "--tx", "--dist")) for arg in args)
        plugins = ["-p", "ollama_warmup", *(["-p", "xdist"] if distributed else [])]
        return [sys.executable, "-m", "pytest", *plugins, *args]

    def run(self, *args: str, fresh: bool = False) -> Result:
        """Run pytest in its own process, a *fresh* one where it matters what is imported."""
        done = forked.run(*self.command(*args)[2:], cwd=self.pytester.path, fresh=fresh)
        # Of a test that fails once in a hundred runs this is all that is left to read.
        print(done.out)
        print(done.err, file=sys.stderr)
        return Result(*done)

    def start(self, *args: str, fresh: bool = False) -> forked.Process:
        """Start pytest in a process group of its own, so that what it leaves can be counted."""
        return forked.start(*self.command(*args)[2:], cwd=self.pytester.path, fresh=fresh)


class Suite(UserSuite):
    """A user's suite, and an emulator that it can talk to."""

    def __init__(self, pytester: pytest.Pytester, ollama: Emulator) -> None:
        super().__init__(pytester)
        self.ollama = ollama


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return for ``-n auto`` more workers than cores: half of the time a test waits."""
    cores = os.cpu_count() or 1
    return min(3 * cores, cores + 8)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own Ollama, CI or proxies reaches a test."""
    for name in list(os.environ):
        if name.startswith(("OLLAMA_", "PYTEST_OLLAMA_", "PYTEST_XDIST_")) or name.upper() in (
            *CI_VARIABLES,
            "PYTEST_ADDOPTS",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "NO_PROXY",
            "GITHUB_ACTIONS",
            "GITHUB_STEP_SUMMARY",
            "NO_COLOR",
            "FORCE_COLOR",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")


@pytest.fixture
def ollama() -> Iterator[Emulator]:
    """An emulator with llama3.2:1b in its registry, not pulled."""
    with Emulator([LLAMA]) as emulator:
        yield emulator


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port on which nothing listens, and which nobody gets during the test."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def ollama_in_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program ``ollama`` for those who look for one; what they say depends on it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ollama").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.fixture
def client(ollama: Emulator) -> Iterator[Client]:
    """Our client of the emulator."""
    client = Client(parse_host(ollama.url, "test"))
    yield client
    client.close()


@pytest.fixture
def suite(pytester: pytest.Pytester, ollama: Emulator, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """An empty suite whose OLLAMA_HOST is the emulator."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    return Suite(pytester, ollama)
