"""The suites that are measured, and one run of pytest on them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT_S = 120.0

FILES = {
    "pytest.ini": """
[pytest]
addopts = -q -p no:cacheprovider
markers = requires_model: Ollama models, known also where the plugin is not
""",
    # Each line of the file is a name and a figure; processes append to it side by side.
    "stamp.py": """
import time

def stamp(name, value=None):
    value = time.monotonic() if value is None else value
    with open("stamps.txt", "a") as file:
        file.write(f"{name} {value!r}\\n")
""",
    # What runs between a hook that is called before the plugin's and one called after it.
    "clock.py": """
import time
import pytest
import filelock, httpx
import pytest_ollama_warmup.session.session, pytest_ollama_warmup.ollama.client
from stamp import stamp

begin = 0.0

class After:
    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self):
        stamp("spent", time.perf_counter() - begin)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self):
        stamp("spent", time.perf_counter() - begin)
        return (yield)

def pytest_configure(config):
    config.pluginmanager.register(After())

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart():
    global begin
    begin = time.perf_counter()
    return (yield)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop():
    global begin
    begin = time.perf_counter()
    return (yield)
""",
    "replay.py": """
import json, sys, time
import httpx
from stamp import stamp

requests = json.load(sys.stdin)
begin = time.perf_counter()
with httpx.Client(verify=False, trust_env=False, timeout=60) as client:
    for method, url, body in requests:
        client.request(method, url, json=body)
stamp("spent", time.perf_counter() - begin)
""",
    # Bare requests one after the other; a pull's stream is read to its end.
    "bare.py": """
import json, os, sys, time
import httpx
from stamp import stamp

given = json.load(sys.stdin)
begin = time.perf_counter()
with httpx.Client(verify=False, trust_env=False, timeout=60) as client:
    for path, body in given["requests"]:
        with client.stream("POST", os.environ["OLLAMA_HOST"] + path, json=body) as answer:
            for line in answer.iter_lines():
                if time.perf_counter() - begin > given["limit_s"]:
                    stamp("spent", time.perf_counter() - begin)
                    stamp("gave-up")
                    sys.exit()
        if path == "/api/pull" and '"success"' not in line:
            sys.exit(line)
stamp("spent", time.perf_counter() - begin)
""",
    # Makes the controller wait where the plugin does, for as long, and for nothing.
    "hold.py": """
import os, time
import pytest
from stamp import stamp

class Hold:
    held = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self):
        if not self.held:
            self.held = True
            time.sleep(float(os.environ["HOLD_S"]))
            stamp("ready")
        return (yield)

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Hold())
""",
    "one.py": "def test_nothing():\n    pass\n",
    "many.py": """
import pytest

@pytest.mark.parametrize("number", range(1000))
def test_nothing(number):
    pass
""",
    "marked.py": """
import pytest

@pytest.mark.requires_model("MODEL")
def test_needs_it():
    pass
""",
    "guarded.py": """
import pytest
from stamp import stamp

@pytest.mark.requires_model("MODEL")
@pytest.mark.parametrize("number", range(300))
def test_does_nothing(number):
    stamp("test")
""",
    # Every tenth test needs a model, which makes them take turns where that is asked for.
    "tenth.py": """
import pytest

NEEDS = pytest.mark.requires_model("MODEL")

@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=NEEDS if n % 10 == 0 else ()) for n in range(10_000)]
)
def test_nothing(number):
    pass
""",
    # What the plugin does is done where this comes, and what it imports was imported before.
    "before_tests.py": """
import time
import pytest
import filelock, httpx
import pytest_ollama_warmup.session.session, pytest_ollama_warmup.ollama.client
import pytest_ollama_warmup.session.ordering
from stamp import stamp

# It imports more of itself when it is first used.
httpx.Client(verify=False).close()

begin = 0.0

class Stop:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self):
        stamp("spent", time.perf_counter() - begin)
        pytest.exit("enough", returncode=0)
        yield

def pytest_configure(config):
    config.pluginmanager.register(Stop())

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    global begin
    begin = time.perf_counter()
    return (yield)
""",
    "fast.py": """
import pytest

@pytest.mark.parametrize("number", range(3000))
def test_nothing(number):
    pass
""",
    # Five seconds of tests for each of PROCESSES processes, and one that needs a model.
    "beside.py": """
import os, time
import pytest

@pytest.mark.requires_model("MODEL")
def test_needs_it():
    pass

@pytest.mark.parametrize("number", range(10 * int(os.environ["PROCESSES"])))
def test_takes_a_while(number):
    time.sleep(0.5)
""",
    # Each test is one request, to whichever host its worker has.
    "served.py": """
import json, urllib.request
import pytest

@pytest.mark.requires_model("MODEL")
@pytest.mark.parametrize("number", range(96))
def test_asks(number, ollama_host):
    body = {"model": "MODEL", "prompt": "Hi", "stream": False}
    url = ollama_host + "/api/generate"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        assert json.load(answer)["done"]
""",
    # Four models in turn.
    "turns.py": """
import json, os, urllib.request
import pytest

NAMES = os.environ["NAMES"].split()
NEEDS = [pytest.param(name, marks=pytest.mark.requires_model(name)) for name in NAMES]

@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize("number", range(6))
def test_asks(number, name):
    body = {"model": name, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
    url = os.environ["OLLAMA_HOST"] + "/api/generate"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        assert json.load(answer)["done"]
""",
    "spread.py": """
import pytest
from stamp import stamp

@pytest.mark.requires_model("one:1b", "two:1b")
@pytest.mark.parametrize("number", range(64))
def test_starts(number, worker_id):
    stamp(worker_id)
""",
    "answers.py": """
import json, os, time, urllib.request
import pytest
from stamp import stamp

@pytest.mark.requires_model("MODEL")
def test_answers():
    body = {"model": "MODEL", "prompt": os.environ["PROMPT"], "stream": False,
            "options": {"num_predict": 16}}
    url = os.environ["OLLAMA_HOST"] + "/api/generate"
    begin = time.perf_counter()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        assert json.load(answer)["done"]
    stamp("answer", time.perf_counter() - begin)
""",
}


@dataclass(frozen=True, slots=True)
class Done:
    """What a run took, in seconds, and what was stamped in it, in its order."""

    wall: float
    cpu: float
    stamps: list[tuple[str, float]]

    def of(self, name: str) -> list[float]:
        """Return the figures stamped under *name*."""
        return [value for found, value in self.stamps if found == name]

    def stamped(self, name: str, value: float) -> Done:
        """Return this with one more figure."""
        return replace(self, stamps=[*self.stamps, (name, value)])


class Suites:
    """The suites in a folder; *model* is the one that the marks name."""

    def __init__(self, folder: Path, model: str = "") -> None:
        self._folder = folder
        for name, text in FILES.items():
            (folder / name).write_text(text.replace("MODEL", model), encoding="utf-8")

    def pytest(self, *args: str, autoload: bool = False, **environ: str) -> Done:
        """Run pytest; with *autoload* as installed, though without the plugins of others."""
        plugins = ["-p", "ollama_warmup"]
        if autoload:
            others = {one.name for one in entry_points(group="pytest11")} - {"ollama_warmup"}
            plugins = [word for name in sorted(others) for word in ("-p", f"no:{name}")]
        else:
            environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return self.python("-m", "pytest", *plugins, *args, **environ)

    def later(self, *args: str, autoload: bool = False) -> Callable[[], Done]:
        """Return what runs pytest when it is called."""
        return lambda: self.pytest(*args, autoload=autoload)

    def python(self, *args: str, given: str = "", **environ: str) -> Done:
        """Run Python to a good end in the folder, with *given* as its input."""
        kept = {key: value for key, value in os.environ.items() if _is_plain(key)}
        stamps = self._folder / "stamps.txt"
        stamps.unlink(missing_ok=True)
        cpu, begin = _cpu_of_children(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=self._folder,
            env=kept | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            # xdist's workers would outlive a controller that is killed.
            start_new_session=True,
        )
        with process:
            try:
                output = process.communicate(given, timeout=LIMIT_S)[0]
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        wall, cpu = time.perf_counter() - begin, _cpu_of_children() - cpu
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(args)} ended with {process.returncode}:\n{output}")
        lines = stamps.read_text("utf-8").splitlines() if stamps.exists() else []
        pairs = [line.split() for line in lines]
        return Done(wall, cpu, [(name, float(value)) for name, value in pairs])


def _is_plain(variable: str) -> bool:
    # Without PYTHONDONTWRITEBYTECODE an editable install is as quick to import as a wheel.
    prefixes = ("OLLAMA_", "PYTEST_", "PYTHONDONTWRITE", "COVERAGE_")
    return variable != "CI" and not variable.startswith(prefixes)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
