"""Run Python programs in processes that are forked instead of started.

Most tests run pytest as a user does. Starting Python and importing pytest took two thirds of the
time of such a run, and the modules of the plugin most of the rest. Here one process imports what
runs need, and is forked for each run and for each xdist worker of it. Runs share nothing but these
imports, and the seed of Python's hashes: that workers agree about an order in spite of different
seeds is tested with runs that are started.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

PYTEST = (
    "pytest",
    "_pytest._argcomplete",
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
    "execnet.gateway_io",
    "execnet.multi",
    "faulthandler",
    "getpass",
    "pdb",
    "pwd",
    "readline",
    "xdist.dsession",
    "xdist.newhooks",
    "xdist.remote",
    "xdist.scheduler",
    "xdist.workermanage",
)
PLUGIN = (
    "encodings.idna",
    "filelock",
    "httpcore",
    "httpx",
    "ollama._client",
    "pytest_ollama_warmup.config.ini",
    "pytest_ollama_warmup.config.listed_models",
    "pytest_ollama_warmup.config.sources",
    "pytest_ollama_warmup.config.terms",
    "pytest_ollama_warmup.distributed.controller",
    "pytest_ollama_warmup.distributed.scheduler",
    "pytest_ollama_warmup.distributed.worker",
    "pytest_ollama_warmup.emulator",
    "pytest_ollama_warmup.ollama.client",
    "pytest_ollama_warmup.ollama.plain_look",
    "pytest_ollama_warmup.plugin",
    "pytest_ollama_warmup.report.bars",
    "pytest_ollama_warmup.report.files",
    "pytest_ollama_warmup.report.github",
    "pytest_ollama_warmup.report.markdown",
    "pytest_ollama_warmup.session.early",
    "pytest_ollama_warmup.session.fixtures",
    "pytest_ollama_warmup.session.hookspecs",
    "pytest_ollama_warmup.session.live_log",
    "pytest_ollama_warmup.session.managed",
    "pytest_ollama_warmup.session.models",
    "pytest_ollama_warmup.session.note_times",
    "pytest_ollama_warmup.session.ordering",
    "pytest_ollama_warmup.session.reports",
    "pytest_ollama_warmup.session.runtest",
    "pytest_ollama_warmup.session.session",
    "pytest_ollama_warmup.session.watch",
    "pytest_ollama_warmup.warmup.child",
    "pytest_ollama_warmup.warmup.cold",
    "pytest_ollama_warmup.warmup.ensure",
    "pytest_ollama_warmup.warmup.ran_tests",
    "pytest_ollama_warmup.warmup.run_directory",
    "rich.console",
    "rich.progress",
    "rich.table",
    "unittest.mock",
)


class Done(NamedTuple):
    """How a program ended, and what it printed. A negative *code* is the signal that ended it."""

    code: int
    out: str
    err: str


def run(*args: str, cwd: Path | str = ".", timeout: float = 100, fresh: bool = False) -> Done:
    """Run ``python -m`` with *args* in *cwd*, for at most *timeout* seconds.

    A *fresh* program imports the plugin, and what that needs, itself.
    """
    if (connection := _connection(fresh, os.environ)) is not None:
        return _run(connection, args, cwd, timeout)
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


def start(
    *args: str,
    cwd: Path | str,
    environ: Mapping[str, str] | None = None,
    terminal: int | None = None,
    fresh: bool = False,
) -> Process:
    """Start ``python -m`` with *args* in a process group of its own, so that all it leaves is seen.

    It hears Ctrl-C. Its output, that for errors too, can be read, or goes to a *terminal*.
    """
    environ = environ or os.environ
    if (connection := _connection(fresh, environ)) is not None:
        return _start(connection, args, cwd, environ, terminal)
    with hearing_signals():
        return subprocess.Popen(
            [sys.executable, "-m", *args],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )


@contextmanager
def hearing_signals() -> Iterator[None]:
    """Let what is started in here hear Ctrl-C and the end of a terminal, as for a user.

    A shell starts background jobs deaf to the one, nohup starts any deaf to the other, and their
    children with them.
    """
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    if sys.platform != "win32":
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Forked:
    """A forked program, with as much of ``subprocess.Popen`` as its users need.

    *connection* leads to the process that forks; *descriptors* become the program's 0, 1 and 2. It
    joins a process *group*, or leads its own where that is 0.
    """

    def __init__(
        self,
        connection: socket.socket,
        args: Sequence[str],
        cwd: str,
        descriptors: Sequence[int],
        group: int,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        read, write = os.pipe()
        request = json.dumps([args, cwd, dict(environ), group]).encode()
        socket.send_fds(connection, [request], [*descriptors, write])
        for descriptor in (*descriptors, write):
            os.close(descriptor)
        # Without a buffer a line is all that is read, and select() sees what is left.
        self._status = os.fdopen(read, "rb", buffering=0)
        self._args = list(args)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None
        self.stdout: TextIO | None = None

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the rest of its output when it has ended, within *timeout* seconds."""
        assert self.stdout is not None
        if self.stdout.closed:
            return "", None
        rest = _reading(self.stdout)
        try:
            self.wait(timeout)
            return rest(timeout), None
        except (TimeoutError, subprocess.TimeoutExpired):
            os.killpg(self.pid, signal.SIGKILL)
            raise

    def poll(self) -> int | None:
        """Return its exit status, or None as long as it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status when it has ended, within *timeout* seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._args, timeout or 0)
            with self._status:
                self.returncode = int(self._status.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, as long as it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Forked


class _Template:
    """A process that has imported the *modules* that runs need, and is forked for each."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.python = _python_variables(os.environ)
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What is forked needs our end as well: for its workers.
        both = [theirs.fileno(), self.connection.fileno()]
        with theirs:
            # It ends with this process, whose end of its standard input is closed then.
            self._process = subprocess.Popen(
                [sys.executable, __file__, *map(str, both), *modules],
                stdin=subprocess.PIPE,
                pass_fds=both,
            )

    def close(self) -> None:
        """End it, and see it end."""
        self.connection.close()
        self._process.communicate()


@cache
def _template(fresh: bool) -> _Template:
    template = _Template(PYTEST if fresh else (*PYTEST, *PLUGIN))
    atexit.register(template.close)
    return template


def _connection(fresh: bool, environ: Mapping[str, str]) -> socket.socket | None:
    """Return what leads to the process that forks; None where a new Python would begin otherwise.

    Python reads its variables when it starts.
    """
    if not hasattr(os, "fork") or _template(fresh).python != _python_variables(environ):
        return None
    return _template(fresh).connection


def _start(
    connection: socket.socket,
    args: Sequence[str],
    cwd: Path | str,
    environ: Mapping[str, str],
    terminal: int | None,
) -> Forked:
    if terminal is not None:
        descriptors = [os.dup(terminal) for _ in range(3)]
        return Forked(connection, args, str(cwd), descriptors, 0, environ)
    read, write = os.pipe()
    descriptors = [os.open(os.devnull, os.O_RDONLY), write, os.dup(write)]
    program = Forked(connection, args, str(cwd), descriptors, 0, environ)
    program.stdout = os.fdopen(read, encoding="utf-8")
    return program


def _run(connection: socket.socket, args: Sequence[str], cwd: Path | str, timeout: float) -> Done:
    out, err = os.pipe(), os.pipe()
    descriptors = [os.open(os.devnull, os.O_RDONLY), out[1], err[1]]
    program = Forked(connection, args, str(cwd), descriptors, os.getpgrp())
    texts = [_reading(os.fdopen(one[0], encoding="utf-8")) for one in (out, err)]
    try:
        return Done(program.wait(timeout), *(text(timeout) for text in texts))
    except (TimeoutError, subprocess.TimeoutExpired):
        program.kill()
        raise


def _python_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environ.items() if k.startswith("PYTHON")}


def _reading(pipe: TextIO) -> Callable[[float | None], str]:
    """Read all of *pipe* beside; the result gives the text, within so many seconds.

    What a program leaves behind may hold the pipe for as long as it likes.
    """
    texts: list[str] = []

    def read() -> None:
        with pipe:
            texts.append(pipe.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def text(timeout: float | None) -> str:
        reader.join(timeout)
        if reader.is_alive():
            raise TimeoutError(f"output is still open after {timeout} s")
        return texts[0]

    return text


def _serve(requests: socket.socket, ours: socket.socket) -> list[str] | None:
    """Fork for each request that comes, and report how each program ended.

    Returns the arguments in a forked program, and None in the process that forks when its standard
    input is closed.
    """
    # What a program starts in its turn has no part in this.
    ours.set_inheritable(False)
    ended, woken = os.pipe()
    for descriptor in (ended, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([0, requests.fileno(), ended], [], [])
        if 0 in ready:
            return None
        if ended in ready:
            os.read(ended, 4096)
            _report(statuses)
        if requests.fileno() in ready:
            request, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
            if not descriptors:
                for pattern, flags in json.loads(request):
                    re.compile(pattern, flags)
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (ended, woken, *statuses.values()):
                    os.close(descriptor)
                requests.close()
                return _begin(request, descriptors, ours)
            *rest, statuses[pid] = descriptors
            for descriptor in rest:
                os.close(descriptor)


def _patterns() -> Collection[tuple[type, str, int]]:
    """Return what this process has compiled of regular expressions, the last one at the end."""
    # re has no public name for it.
    return getattr(re, "_cache", ())


def _report(statuses: dict[int, int]) -> None:
    """Tell those who wait for a program that it has ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = statuses.pop(ended[0])
            # Nobody may be there any more to read it.
            with suppress(BrokenPipeError):
                os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
            os.close(status)


def _begin(request: bytes, descriptors: list[int], ours: socket.socket) -> list[str]:
    """Become the program that was asked for."""
    # Whoever started the tests may be deaf to these, as a background job of a shell is.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    args, cwd, environ, group = json.loads(request)
    os.setpgid(0, group)
    status = descriptors.pop()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    _fork_workers(ours)
    # Whoever knows it can reach this process by a signal, and its group.
    os.write(status, b"%d\n" % os.getpid())
    os.close(status)
    return list(args)


def _import_plugins_as_they_are() -> None:
    """Keep pytest from warnings that it cannot rewrite the asserts of plugins, which have none.

    For that it looks through all modules, two dozen times in a run. Of a suite's own it still does.
    """
    from _pytest.assertion.rewrite import AssertionRewritingHook

    mark, ours = AssertionRewritingHook.mark_rewrite, {"_pytest", "ollama_warmup", "xdist"}

    def mark_rewrite(self: AssertionRewritingHook, *names: str) -> None:
        if not ours.issuperset(name.partition(".")[0] for name in names):
            mark(self, *names)
            return
        self._must_rewrite.update(names)
        self._marked_for_rewrite_cache.clear()

    # pytest has no setting for it, and mypy lets no method take the place of another.
    AssertionRewritingHook.mark_rewrite = mark_rewrite  # type: ignore[method-assign]


def _register_default_plugins() -> None:
    """Let the first configuration of a run be one that has the default plugins already."""
    from _pytest import config, fixtures

    def fixtures_in(place: object) -> dict[str, object]:
        parts = vars(place).items()
        return {k: v for k, v in parts if isinstance(v, fixtures.FixtureFunctionDefinition)}

    build, look = config.get_config, fixtures.FixtureManager.pytest_plugin_registered
    ready = build()

    # A fifth of a run went by in looking for fixtures at all names that pytest itself has.
    those_with = {}
    for plugin in ready.pluginmanager.get_plugins():
        if isinstance(plugin, ModuleType):
            those_with[plugin.__name__] = ModuleType(plugin.__name__)
            vars(those_with[plugin.__name__]).update(fixtures_in(plugin))

    # pytest has no public types for what this takes the place of; pluggy reads the names.
    def pytest_plugin_registered(self, plugin, plugin_name):  # type: ignore[no-untyped-def]
        kind = type(plugin)
        if isinstance(plugin, ModuleType):
            look(self, those_with.get(plugin.__name__, plugin), plugin_name)
        elif not kind.__module__.startswith("_pytest.") or fixtures_in(kind):
            look(self, plugin, plugin_name)

    # pytest 8.4 and 9 differ in what they pass on: the types of both would fit neither.
    def first(args=None, plugins=None, **prog):  # type: ignore[no-untyped-def]
        config.get_config = build
        # "-p no:" keeps one from being registered.
        if any("no:" in arg for arg in args or ()):
            return build(args, plugins, **prog)
        ready.invocation_params = ready.InvocationParams(
            args=args or (), plugins=plugins, dir=Path.cwd()
        )
        for name in prog.values():
            ready._parser.prog = name
        return ready

    # There is no setting for where pytest takes its configuration from, nor for where it looks.
    config.get_config = first
    fixtures.FixtureManager.pytest_plugin_registered = pytest_plugin_registered  # type: ignore[method-assign]


def _remember_plugins() -> None:
    """Look for plugins once: for each "-p name" pluggy reads what all distributions offer."""
    found = [
        distribution
        for distribution in metadata.distributions()
        if any(one.group == "pytest11" for one in distribution.entry_points)
    ]
    # Plugins that ask for entry points of other groups find none; importlib has no setting for it.
    vars(metadata)["distributions"] = lambda: found
    for name in ("entry_points", "metadata"):
        setattr(
            metadata.Distribution, name, property(cache(vars(metadata.Distribution)[name].fget))
        )
    for distribution in found:
        assert distribution.entry_points is not None
        assert distribution.metadata is not None


def _pass_over_what_is_no_hook() -> None:
    """Let pluggy look at those names of a plugin only that pytest can take for hooks."""
    from pluggy import _manager

    # pytest turns all others down, one by one; a name of the module comes before the built-in one.
    vars(_manager)["dir"] = lambda plugin: [one for one in dir(plugin) if one.startswith("pytest_")]


def _prepare_workers() -> None:
    """Work out once what each worker asks for when it begins."""
    import platform

    from execnet import gateway, gateway_base
    from xdist import remote

    # It would start "uname -p" each time.
    platform.processor()
    # Of what is sent to a worker, which compiles it.
    inspect.getsource(gateway.rinfo_source)
    code = compile(f"{inspect.getsource(remote)}\n", remote.__file__, "exec")

    def compiled(source: str, name: str, mode: str) -> CodeType:
        return code if name == remote.__file__ else compile(source, name, mode)

    # execnet has no setting for it; a name of the module comes before the built-in one.
    vars(gateway_base)["compile"] = compiled


def _fork_workers(connection: socket.socket) -> None:
    """Let execnet fork the workers that it would start with this Python."""
    from execnet import gateway_base, gateway_io

    start = gateway_io.Popen2IOMaster.__init__
    python = _python_variables(os.environ)

    # execnet has no types for what this takes the place of.
    def fork(self, args, execmodel) -> None:  # type: ignore[no-untyped-def]
        as_here = python == _python_variables(os.environ)
        if not as_here or args != [sys.executable, "-u", "-c", BOOTSTRAP]:
            start(self, args, execmodel)
            return
        stdin, stdout = os.pipe(), os.pipe()
        descriptors = [stdin[0], stdout[1], os.dup(2)]
        self.popen = Forked(connection, args[2:], str(Path.cwd()), descriptors, os.getpgrp())
        gateway_base.Popen2IO.__init__(
            self, os.fdopen(stdin[1], "wb", 0), os.fdopen(stdout[0], "rb", 0), execmodel=execmodel
        )

    # There is no setting for how execnet starts a process.
    gateway_io.Popen2IOMaster.__init__ = fork  # type: ignore[method-assign]


if __name__ == "__main__":
    import gc
    import importlib
    import runpy
    import ssl

    from execnet.gateway_io import popen_bootstrapline as BOOTSTRAP

    # The plugin remembers where modules are found: not beside this file.
    sys.path[0] = ""
    for name in sys.argv[3:]:
        importlib.import_module(name)
    # ollama.chat() and the like go to the OLLAMA_HOST of import time, so each run imports it again.
    sys.modules.pop("ollama", None)
    _import_plugins_as_they_are()
    _register_default_plugins()
    _remember_plugins()
    _pass_over_what_is_no_hook()
    _prepare_workers()
    # The first one reads what OpenSSL is set to.
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A run is over before there is enough to collect; what was imported stays as it is.
    gc.set_threshold(100_000)
    gc.freeze()
    REQUESTS, OURS = (socket.socket(fileno=int(one)) for one in sys.argv[1:3])
    ARGS = _serve(REQUESTS, OURS)
    if ARGS is None:
        sys.exit()
    # To look at each would copy the memory of all into this process.
    KNOWN = len(_patterns())
    # Coverage, where it is measured, has begun with this process; each fork saves what is its own.
    CODE = 0
    try:
        if ARGS[0] == "-c":
            sys.path[0] = ""
            sys.argv[:] = ["-c"]
            exec(ARGS[1], {"__name__": "__main__"})
        else:
            sys.path[0] = str(Path.cwd())
            if IMPORTED := sys.modules.get("pytest_ollama_warmup.session.preparation"):
                # In the template it has not seen where this run takes place.
                vars(IMPORTED)["SYS_PATH"] = tuple(sys.path)
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
    # A run compiles two dozen, a tenth of its time: those that are forked later have them.
    if len(_patterns()) > KNOWN:
        NEW = [(text, flags) for kind, text, flags in [*_patterns()][KNOWN:] if kind is str]
        with suppress(OSError):
            OURS.send(json.dumps(NEW).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CODE)
