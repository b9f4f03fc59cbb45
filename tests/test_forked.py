"""A forked run is what a started one is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import forked

if TYPE_CHECKING:
    from tests.conftest import Suite

SUITE = {
    "pytest.ini": "[pytest]\nmarkers = slow: takes long\n",
    "conftest.py": 'import pytest\n\n@pytest.fixture\ndef mine():\n    """My own."""\n',
    "test_it.py": "def test_it(mine, tmp_path, monkeypatch, capsys): pass\n",
}


@pytest.mark.parametrize(
    "args",
    [
        ["--fixtures", "-v"],
        ["--help"],
        ["--markers"],
        ["--fixtures-per-test", "-v"],
        ["--no-such-option"],
        ["-p", "no:terminal", "-p", "no:tmpdir", "test_it.py::test_it"],
        ["-p", "no:cacheprovider", "--setup-show", "-rA", "--trace-config", "-p", "xdist"],
    ],
    ids=lambda args: args[-1],
)
def test_it_shows_the_same(suite: Suite, args: list[str]) -> None:
    suite.write(SUITE)
    command = ["pytest", "-p", "ollama_warmup", *args]
    started = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=suite.pytester.path,
        capture_output=True,
        text=True,
        check=False,
    )
    for fresh in (False, True):
        done = forked.run(*command, cwd=suite.pytester.path, fresh=fresh)
        assert _lasting(started.stdout) == _lasting(done.out)
        assert (started.returncode, started.stderr) == (done.code, done.err)


def _lasting(text: str) -> list[str]:
    """Leave out what is different each time: how long it took, and where in memory objects are."""
    return re.sub(
        r"0x[0-9a-f]+|\b\d{9,}\b|=* (no tests ran|\d+ passed) in [\d.]+s =*", "", text
    ).splitlines()


LEAVES = """
import os, pathlib, time

if os.fork() == 0:
    pathlib.Path("left").write_text(str(os.getpid()))
    time.sleep(600)
while not pathlib.Path("left").exists() or not pathlib.Path("left").read_text():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("how", ["run", "start"])
def test_what_a_program_leaves_is_not_waited_for(suite: Suite, how: str) -> None:
    """It keeps the output open, for much longer than the program has for its end."""
    suite.write({"leaves.py": LEAVES})

    def run() -> None:
        if how == "run":
            forked.run("leaves", cwd=suite.pytester.path, timeout=5)
        else:
            forked.start("leaves", cwd=suite.pytester.path).communicate(timeout=5)

    with pytest.raises(TimeoutError):
        run()
    # It is still there.
    os.kill(int((suite.pytester.path / "left").read_text()), signal.SIGKILL)


def test_who_knows_its_number_reaches_it_and_its_group(suite: Suite) -> None:
    suite.write({"sleeps.py": "import time; time.sleep(30)\n"})
    for number in (signal.SIGINT, signal.SIGTERM):
        process = forked.start("sleeps", cwd=suite.pytester.path)
        os.killpg(process.pid, number)
        process.communicate(timeout=15)
        assert process.returncode != 0


def test_variables_of_python_count(suite: Suite) -> None:
    suite.write({"shows.py": "import sys; print(sys.path)\n"})
    environ = {**os.environ, "PYTHONPATH": "/nowhere"}
    process = forked.start("shows", cwd=suite.pytester.path, environ=environ)
    assert "'/nowhere'" in process.communicate(timeout=30)[0]


def test_a_module_that_is_written_again_is_read_again(suite: Suite) -> None:
    """Also within one second, and of the same length."""
    suite.write({"test_it.py": "from number import N\n\ndef test_it(): assert N == 3\n"})
    for n in range(4):
        suite.write({"number.py": f"N = {n}\n"})
        assert {"passed" if n == 3 else "failed": 1} == suite.run().counts
