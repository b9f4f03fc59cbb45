"""Models are loaded by a process of their own, while this one runs tests.

What tests do to their process (mocks of httpx, frozen clocks, patched sockets) does not reach it,
nor do they see what it does.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.process import detached
from pytest_ollama_warmup.warmup.job import Event
from pytest_ollama_warmup.warmup.preloader import Preloader, Threads
from pytest_ollama_warmup.warmup.record import Record
from pytest_ollama_warmup.warmup.warmer import Process, Warmers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.job import Say
    from pytest_ollama_warmup.warmup.preloader import Task
    from pytest_ollama_warmup.warmup.run_directory import RunDirectory
    from pytest_ollama_warmup.warmup.warmer import Warmer

END_S = 5.0


class Child:
    """Does tasks in a child process, on the same directory of the run.

    Should it die, the rest is left to whoever needs it. *settings* are asked for when it begins.
    *module_path* is where it finds modules, without the directory of the tests.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        directory: RunDirectory,
        module_path: Sequence[str],
    ) -> None:
        self._settings, self._directory, self._path = settings, directory, module_path
        self._children: list[subprocess.Popen[bytes]] = []

    def begin(self, tasks: list[Task], say: Say) -> None:
        """Start a child for *tasks*."""
        child = subprocess.Popen(
            # -P: nothing in the directory of the tests may stand in for a module. The directory of
            # the run is there for whoever looks at the list of processes.
            [sys.executable, "-P", "-m", __name__, str(self._directory.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A program that starts pytest may have put its dependencies on the path by itself.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(self._path)},
            # We end it; and one that hears Ctrl-C while it starts would say so at length.
            **detached(),
        )
        assert child.stdin is not None
        self._children.append(child)
        # If it is dead already, its end is read below.
        with suppress(OSError):
            pickle.dump((self._settings(), self._directory, tasks), child.stdin)
            child.stdin.flush()
        threading.Thread(target=self._read, args=(child, tasks, say), daemon=True).start()

    def close(self) -> None:
        """End the children, and have the server end what they have begun."""
        for child in self._children:
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()
        for child in self._children:
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _read(self, child: subprocess.Popen[bytes], tasks: list[Task], say: Say) -> None:
        left = {task.target.id: task.target for task in tasks}
        assert child.stdout is not None
        # It ends where the child does, also in the midst of an event.
        with suppress(EOFError, pickle.UnpicklingError, OSError, ValueError):
            while left:
                event: Event = pickle.load(child.stdout)
                if event.outcome is not None:
                    del left[event.target.id]
                say(event)
        if not left or child.stdin is None or child.stdin.closed:
            return
        # Not here, where tests may have mocked what it needs.
        why = f"the process that loads models exited with {_exit_code(child)}"
        first = next(iter(left.values()))
        say(Event(first, "server", why=f"{why}: each model is loaded when a test needs it"))
        for target in left.values():
            say(Event(target, "dropped"))


def _exit_code(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(END_S)
    except subprocess.TimeoutExpired:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def main() -> None:
    """Do the tasks that the parent process names on standard input, and say how that goes."""
    settings: Settings
    directory: RunDirectory
    tasks: list[Task]
    settings, directory, tasks = pickle.load(sys.stdin.buffer)
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    writing, said = threading.Lock(), set[str]()

    def say(event: Event) -> None:
        # Not into a file object's buffer first: whoever waits must hear of it now.
        with writing:
            out.write(pickle.dumps(event))
            out.flush()

    def say_waiting(text: str) -> None:
        if text not in said:
            said.add(text)
            say(Event(tasks[0].target, "server", why=text))

    requests = {task.target.spec.key: task.target.request for task in tasks}
    process = Process(ask_request=lambda spec: requests[spec.key], say_waiting=say_waiting)
    warmers = Warmers(lambda: settings, directory, process)
    threading.Thread(target=_end_with_parent, args=(warmers,), daemon=True).start()
    _do(tasks, warmers.own, say, in_turns=bool(settings.group_by_model.value))
    warmers.close()


def _do(tasks: list[Task], warmer: Warmer, say: Say, *, in_turns: bool) -> None:
    server = warmer.server()
    if not server.ready:
        for task in tasks:
            outcome = warmer.failed_like(server, task.target)
            say(Event(task.target, "done", outcome=outcome))
        return
    preloader = Preloader(Threads(lambda target: warmer, in_turns=in_turns), Record())
    for stage in ("pull", "load"):
        preloader.start([task.target for task in tasks if task.stage == stage], stage)
    for event in preloader.events("done"):
        if event is not None:
            say(event)


def _end_with_parent(warmers: Warmers) -> None:
    # No file object: one that a daemon thread reads makes Python's own end a fatal error.
    os.read(0, 1)
    warmers.close()
    os._exit(1)


if __name__ == "__main__":
    main()
