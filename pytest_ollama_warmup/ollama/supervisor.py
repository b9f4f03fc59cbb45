"""Run one server, and end it with all its children when the process that wants it has gone.

Run as ``python supervisor.py COMMAND...``, a program of its own that imports the standard library
only, so that it is there after 30 ms. The server runs as long as the pipe that is standard input
stays open and silent: the kernel closes it however the other end dies, SIGKILL and ``os._exit``
included. The first line of standard output is the server's process id. What the server writes goes
to standard error, and of a file there only the end is kept.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time

# From SIGTERM to SIGKILL. Ollama v0.33 was seen to take up to 1.7 s, with a model loaded.
GRACE_S = 5.0
LOOK_S = 1.0
# For processes that left the server's group, and for the last words of what was ended.
REST_S = 2.0
# Of the log: how long it may become, and how much is kept then. Messages need its last megabyte.
LOG_LIMIT = 4 << 20
LOG_KEPT = 2 << 20
_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run *command* until it ends or nobody wants it any more; return its exit code.

    As a shell would: 128 and the signal's number when a signal ended it, 126 when it cannot be run.
    """
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: reasons.put("signal"))
    parent = os.getppid()
    _adopt_orphans()
    try:
        server = _start(command)
    except OSError as exc:
        os.write(2, f"{command[0]} cannot be run: {exc.strerror}\n".encode(errors="replace"))
        return 126
    over = threading.Event()
    pump = threading.Thread(target=_pump, args=(server, Log(2)), daemon=True)
    try:
        pump.start()
        _watch(server, over, reasons)
        # The other end may be gone already.
        with contextlib.suppress(BrokenPipeError):
            os.write(1, b"%d\n" % server.pid)
        # Whatever the other end has forked without exec holds the pipe open too, also after it.
        while os.getppid() == parent:
            try:
                reasons.get(timeout=LOOK_S)
                break
            except queue.Empty:
                _reap_orphans(server.pid)
    finally:
        _end(server, over)
        # A process that could not be ended may hold the other end open.
        pump.join(REST_S)
    code = server.returncode
    return 1 if code is None else code if code >= 0 else 128 - code


def _watch(
    server: subprocess.Popen[bytes], over: threading.Event, reasons: queue.SimpleQueue[str]
) -> None:
    """Put a reason into *reasons* when the server or the pipe ends; *over* is the server's end."""

    def watch_server() -> None:
        server.wait()
        over.set()
        reasons.put("ended")

    def watch_pipe() -> None:
        os.read(0, 1)
        reasons.put("closed")

    for watch in (watch_server, watch_pipe):
        threading.Thread(target=watch, daemon=True).start()


class Log:
    """What the server writes, on the descriptor *out*: of a file the end only.

    What was in the file before stays.
    """

    def __init__(self, out: int) -> None:
        self._out = out
        status = os.fstat(out)
        self._is_file, self._begin = stat.S_ISREG(status.st_mode), status.st_size
        self._total = self._size = 0
        self._end = bytearray()

    def write(self, data: bytes) -> None:
        """Add *data*; what does not fit on the disk is lost."""
        self._total += len(data)
        if self._is_file:
            self._end += data
            if self._size + len(data) > LOG_LIMIT:
                data = self._cut()
            elif len(self._end) > LOG_LIMIT:
                del self._end[:-LOG_KEPT]
        self._size += len(data)
        left = memoryview(data)
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._out, left) :]

    def _cut(self) -> bytes:
        """Empty the file, and return what is to be in it from now on."""
        del self._end[:-LOG_KEPT]
        # From a whole line on.
        del self._end[: self._end.find(b"\n") + 1]
        with contextlib.suppress(OSError):
            os.ftruncate(self._out, self._begin)
            os.lseek(self._out, 0, os.SEEK_END)
        self._size = 0
        return b"[%d bytes left out]\n%s" % (self._total - len(self._end), self._end)


def _pump(server: subprocess.Popen[bytes], log: Log) -> None:
    assert server.stdout is not None
    while data := os.read(server.stdout.fileno(), 1 << 16):
        log.write(data)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        # A group of its own, which its children stay in when it has died.
        process_group=None if sys.platform == "win32" else 0,
    )


if sys.platform == "win32":

    def _adopt_orphans() -> None:
        pass

    def _reap_orphans(server: int) -> None:
        pass

    def _end(server: subprocess.Popen[bytes], over: threading.Event) -> None:
        # There is no SIGTERM, and none of its children are found when it has ended by itself.
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(server.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=GRACE_S,
            check=False,
        )
        over.wait(GRACE_S)

else:

    def _end(server: subprocess.Popen[bytes], over: threading.Event) -> None:
        if not over.is_set():
            _signal_group(server.pid, signal.SIGTERM)
            over.wait(GRACE_S)
        # Those that the server left behind, after SIGTERM as after its own death.
        _signal_group(server.pid, signal.SIGKILL)
        over.wait(GRACE_S)
        # And those in a session of their own, which are children of this process by now.
        deadline = time.monotonic() + REST_S
        while (children := _children()) and time.monotonic() < deadline:
            for child in children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
            _reap_orphans(server.pid)

    def _adopt_orphans() -> None:
        """Become the parent of all descendants that lose theirs, on Linux (prctl(2))."""
        if sys.platform == "linux":
            # The standard library has no other way. Without it they outlive this process.
            with contextlib.suppress(ImportError, OSError, AttributeError):
                import ctypes

                ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _reap_orphans(server: int) -> None:
        """Reap adopted processes that have ended; a thread waits for *server*."""
        if sys.platform == "linux":
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitid(os.P_ALL, 0, flags)) and ended.si_pid != server:
                    os.waitpid(ended.si_pid, os.WNOHANG)

    def _children() -> list[int]:
        """Return the children of this process that run, on Linux.

        Their ids are safe to use: none is given again before it is reaped here.
        """
        if sys.platform != "linux":
            return []
        from pathlib import Path

        children, own = [], b"%d" % os.getpid()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The program's name, in parentheses, may hold anything.
                state, parent, *_ = path.read_bytes().rpartition(b")")[2].split()
                if parent == own and state != b"Z":
                    children.append(int(path.parent.name))
        return children

    def _signal_group(group: int, number: signal.Signals) -> None:
        # macOS refuses where all that is left of the group are zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
