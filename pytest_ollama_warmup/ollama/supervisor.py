"""Run one server, and end it with all its children when the process that wants it has gone.

Run as ``python supervisor.py COMMAND...``, a program of its own that imports the standard library
only, so that it is there after 30 ms. The server runs as long as the pipe that is standard input
stays open and silent: the kernel closes it however the other end dies, SIGKILL and ``os._exit``
included. The first line of standard output is the server's process id; the server writes to
standard error.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading

# From SIGTERM to SIGKILL. Ollama v0.33 was seen to take up to 1.7 s, with a model loaded.
GRACE_S = 5.0
LOOK_S = 1.0


def main(command: list[str]) -> int:
    """Run *command* until it ends or nobody wants it any more; return its exit code.

    As a shell would: 128 and the signal's number when a signal ended it, 126 when it cannot be run.
    """
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: reasons.put("signal"))
    parent = os.getppid()
    try:
        server = _start(command)
    except OSError as exc:
        os.write(2, f"{command[0]} cannot be run: {exc.strerror}\n".encode(errors="replace"))
        return 126
    over = threading.Event()

    def watch_server() -> None:
        server.wait()
        over.set()
        reasons.put("ended")

    def watch_pipe() -> None:
        os.read(0, 1)
        reasons.put("closed")

    try:
        for watch in (watch_server, watch_pipe):
            threading.Thread(target=watch, daemon=True).start()
        # The other end may be gone already.
        with contextlib.suppress(BrokenPipeError):
            os.write(1, b"%d\n" % server.pid)
        # Whatever the other end has forked without exec holds the pipe open too, also after it.
        while os.getppid() == parent:
            try:
                reasons.get(timeout=LOOK_S)
                break
            except queue.Empty:
                continue
    finally:
        _end(server, over)
    code = server.returncode
    return 1 if code is None else code if code >= 0 else 128 - code


if sys.platform == "win32":

    def _start(command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, stderr=2)

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

    def _start(command: list[str]) -> subprocess.Popen[bytes]:
        # A group of its own, which its children stay in when it has died.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, process_group=0
        )

    def _end(server: subprocess.Popen[bytes], over: threading.Event) -> None:
        if not over.is_set():
            _signal_group(server.pid, signal.SIGTERM)
            over.wait(GRACE_S)
        # Those that the server left behind, after SIGTERM as after its own death.
        _signal_group(server.pid, signal.SIGKILL)
        over.wait(GRACE_S)

    def _signal_group(group: int, number: signal.Signals) -> None:
        # macOS refuses where all that is left of the group are zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
