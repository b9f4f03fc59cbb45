"""Run Python programs in processes that are forked instead of started.

Most tests run pytest as a user does. Starting Python and importing pytest took two thirds of the
time of such a run, and the modules of the plugin most of the rest. Here one process imports what
runs need, and is forked for each run and for each xdist worker of it. Runs share nothing but these
imports.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

IMPORTED = (
    "pytest",
    "_pytest.cacheprovider",
    "_pytest.faulthandler",
    "_pytest.helpconfig",
    "_pytest.junitxml",
    "_pytest.pastebin",
    "_pytest.setuponly",
    "_pytest.setupplan",
    "_pytest.skipping",
    "_pytest.stepwise",
    "_pytest.threadexception",
    "_pytest.tracemalloc",
    "_pytest.unittest",
    "_pytest.unraisableexception",
    "_pytest.warnings",
    "concurrent.futures.thread",
    "encodings.idna",
    "execnet.gateway_io",
    "execnet.multi",
    "filelock",
    "httpcore",
    "httpx",
    "pdb",
    "pytest_ollama_warmup.config.ini",
    "pytest_ollama_warmup.config.sources",
    "pytest_ollama_warmup.distributed.controller",
    "pytest_ollama_warmup.distributed.worker",
    "pytest_ollama_warmup.ollama.client",
    "pytest_ollama_warmup.plugin",
    "pytest_ollama_warmup.report.bars",
    "pytest_ollama_warmup.session.early",
    "pytest_ollama_warmup.session.fixtures",
    "pytest_ollama_warmup.session.hookspecs",
    "pytest_ollama_warmup.session.live_log",
    "pytest_ollama_warmup.session.models",
    "pytest_ollama_warmup.session.ordering",
    "pytest_ollama_warmup.session.reports",
    "pytest_ollama_warmup.session.runtest",
    "pytest_ollama_warmup.session.session",
    "pytest_ollama_warmup.session.watch",
    "pytest_ollama_warmup.warmup.child",
    "pytest_ollama_warmup.warmup.ensure",
    "rich.console",
    "rich.progress",
    "rich.table",
    "unittest.mock",
    "xdist.dsession",
    "xdist.newhooks",
    "xdist.remote",
    "xdist.scheduler",
    "xdist.workermanage",
)


class Done(NamedTuple):
    """How a program ended, and what it printed. A negative *code* is the signal that ended it."""

    code: int
    out: str
    err: str


def run(*args: str, cwd: Path | str = ".", timeout: float = 100, fresh: bool = False) -> Done:
    """Run ``python -m`` with *args* in *cwd*, for at most *timeout* seconds.

    A *fresh* program is started, not forked.
    """
    if not fresh and hasattr(os, "fork") and _template().begins_alike():
        return _template().run(args, cwd, timeout)
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Forked:
    """A forked program, with as much of ``subprocess.Popen`` as execnet uses.

    *connection* leads to the process that forks; *descriptors* become the program's 0, 1 and 2.
    """

    def __init__(
        self, connection: socket.socket, args: Sequence[str], cwd: str, descriptors: Sequence[int]
    ) -> None:
        read, write = os.pipe()
        request = json.dumps([args, cwd, dict(os.environ)]).encode()
        socket.send_fds(connection, [request], [*descriptors, write])
        for descriptor in (*descriptors, write):
            os.close(descriptor)
        self._status = os.fdopen(read, encoding="ascii")
        self.pid = int(self._status.readline())
        self._code: int | None = None

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        if self._code is None:
            with self._status:
                self._code = int(self._status.readline())
        return self._code

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)


class _Template:
    """A process that has imported what runs need, and is forked for each."""

    def __init__(self) -> None:
        self._python = _python_variables()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # It ends with this process, whose end of the connection is closed then.
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End it, and see it end."""
        self._connection.close()
        self._process.wait()

    def begins_alike(self) -> bool:
        """Whether a new Python would read the same variables when it starts."""
        return self._python == _python_variables()

    def run(self, args: Sequence[str], cwd: Path | str, timeout: float) -> Done:
        out, err = os.pipe(), os.pipe()
        descriptors = [os.open(os.devnull, os.O_RDONLY), out[1], err[1]]
        program = Forked(self._connection, args, str(cwd), descriptors)
        with ThreadPoolExecutor(3) as pool:
            texts = [pool.submit(_read, out[0]), pool.submit(_read, err[0])]
            code = pool.submit(program.wait)
            try:
                return Done(code.result(timeout), *(text.result(timeout) for text in texts))
            except TimeoutError:
                program.kill()
                raise


@cache
def _template() -> _Template:
    template = _Template()
    atexit.register(template.close)
    return template


def _python_variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith("PYTHON")}


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, encoding="utf-8") as pipe:
        return pipe.read()


def _serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request that comes, until the other side closes.

    Returns the arguments in a forked program, and None in the process that forks.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        if not request:
            return None
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while _ended():
            pass


def _keep(request: bytes, descriptors: list[int]) -> list[str]:
    """Fork once more; report the end of the program, and fork for it meanwhile."""
    status = descriptors.pop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.close(status)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        args, cwd, environ = json.loads(request)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(cwd)
        _fork_workers(theirs)
        return list(args)
    theirs.close()
    for descriptor in descriptors:
        os.close(descriptor)

    def look(*_: object) -> None:
        while ended := _ended():
            if ended[0] == pid:
                os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
                os._exit(0)

    os.write(status, b"%d\n" % pid)
    signal.signal(signal.SIGCHLD, look)
    look()
    worker = _serve(ours)
    # The program has closed its end: its own end follows, and look() reports it and leaves.
    while worker is None:
        time.sleep(0.01)
    return worker


def _ended() -> tuple[int, int] | None:
    try:
        ended = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return ended if ended[0] else None


def _pretend_that_pytest_has_imported(*packages: str) -> None:
    """Keep pytest from warnings that it cannot rewrite the asserts of plugins, which have none."""
    from _pytest.assertion.rewrite import AssertionRewritingHook

    loader = AssertionRewritingHook.__new__(AssertionRewritingHook)
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in packages:
            module.__loader__ = loader


def _fork_workers(connection: socket.socket) -> None:
    """Let execnet fork the workers that it would start with this Python."""
    from execnet import gateway_base, gateway_io

    start = gateway_io.Popen2IOMaster.__init__
    python = _python_variables()

    # execnet has no types for what this takes the place of.
    def fork(self, args, execmodel) -> None:  # type: ignore[no-untyped-def]
        if args != [sys.executable, "-u", "-c", BOOTSTRAP] or python != _python_variables():
            start(self, args, execmodel)
            return
        stdin, stdout = os.pipe(), os.pipe()
        descriptors = [stdin[0], stdout[1], os.dup(2)]
        self.popen = Forked(connection, args[2:], str(Path.cwd()), descriptors)
        gateway_base.Popen2IO.__init__(
            self, os.fdopen(stdin[1], "wb", 0), os.fdopen(stdout[0], "rb", 0), execmodel=execmodel
        )

    # There is no setting for how execnet starts a process.
    gateway_io.Popen2IOMaster.__init__ = fork  # type: ignore[method-assign]


if __name__ == "__main__":
    import gc
    import importlib
    import runpy

    from execnet.gateway_io import popen_bootstrapline as BOOTSTRAP

    # The plugin remembers where modules are found: not beside this file.
    sys.path[0] = ""
    for name in IMPORTED:
        importlib.import_module(name)
    _pretend_that_pytest_has_imported("pytest_ollama_warmup", "xdist")
    gc.freeze()
    ARGS = _serve(socket.socket(fileno=int(sys.argv[1])))
    if ARGS is None:
        while _ended():
            pass
        sys.exit()
    # Coverage, where it is measured, has begun with this process; each fork saves what is its own.
    CODE = 0
    try:
        if ARGS[0] == "-c":
            sys.path[0] = ""
            sys.argv[:] = ["-c"]
            exec(ARGS[1], {"__name__": "__main__"})
        else:
            sys.path[0] = str(Path.cwd())
            sys.argv[1:] = ARGS[1:]
            runpy.run_module(ARGS[0], run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        if not isinstance(exc.code, int):
            raise
        CODE = exc.code
    # As Python ends, without taking apart what the template has imported: a fifth of the time. Only
    # Python's own end waits for threads; what it calls for that has no public name, nor a type.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CODE)
