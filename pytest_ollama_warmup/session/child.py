"""Models are brought by a process of their own, while this one runs tests.

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
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.process import detached
from pytest_ollama_warmup.report.progress import Screen
from pytest_ollama_warmup.session.leader import Leader
from pytest_ollama_warmup.session.state import SYS_PATH
from pytest_ollama_warmup.warmup.job import Event
from pytest_ollama_warmup.warmup.preloader import Preparation

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Target

END_S = 5.0
TRIES = 2


class ChildPreparation(Preparation):
    """Brings models in child processes, on the same directory of the run.

    Should one die, another one goes on; should that, the rest is left to whoever needs it.
    *settings* are asked for when one begins.
    """

    def __init__(self, settings: Callable[[], Settings], folder: Path) -> None:
        super().__init__()
        self._settings, self._folder = settings, folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._died = 0

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

    def _begin(self, targets: list[Target]) -> None:
        child = subprocess.Popen(
            # -P: nothing in the directory of the tests may stand in for a module. The directory of
            # the run is there for whoever looks at the list of processes.
            [sys.executable, "-P", "-m", "pytest_ollama_warmup.session.child", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A program that starts pytest may have put its dependencies on the path by itself.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_module_path())},
            # We end it; and one that hears Ctrl-C while it starts would say so at length.
            **detached(),
        )
        assert child.stdin is not None
        self._children.append(child)
        # If it is dead already, its end is read below.
        with suppress(OSError):
            pickle.dump((self._settings(), self._folder, targets), child.stdin)
            child.stdin.flush()
        threading.Thread(target=self._read, args=(child, targets), daemon=True).start()

    def _read(self, child: subprocess.Popen[bytes], targets: list[Target]) -> None:
        left = {target.key: target for target in targets}
        assert child.stdout is not None
        # It ends where the child does, also in the midst of an event.
        with suppress(EOFError, pickle.UnpicklingError, OSError, ValueError):
            while left:
                event: Event = pickle.load(child.stdout)
                if event.outcome is not None:
                    del left[event.target.key]
                self._events.put(event)
        if not left or child.stdin is None or child.stdin.closed:
            return
        # Not here, where tests may have mocked what it needs.
        self._died += 1
        why = f"the process that loads models exited with {_exit_code(child)}"
        again = list(left.values())
        if self._died < TRIES:
            self._events.put(Event(again[0], "server", why=f"{why}: starting another one"))
            self._begin(again)
            return
        self._events.put(
            Event(again[0], "server", why=f"{why}: each model is loaded when a test needs it")
        )
        for target in again:
            self._events.put(Event(target, "dropped"))


def _module_path() -> list[str]:
    # Without the directory of the tests, which "python -m pytest" puts there.
    return [one for one in SYS_PATH if one and Path(one) != Path.cwd()]


def _exit_code(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(END_S)
    except subprocess.TimeoutExpired:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def main() -> None:
    """Bring what the parent process names on standard input, and tell it how that goes."""
    settings, folder, targets = pickle.load(sys.stdin.buffer)
    requests = {target.spec.key: target.request for target in targets}
    screen = Screen(
        # What is said of no model: that the server is waited for.
        lambda line, **colours: tell(Event(targets[0], "server", why=line.removeprefix("ollama: ")))
    )
    leader = Leader(settings, folder, screen, lambda spec: requests[spec.key])
    threading.Thread(target=_end_with_parent, args=(leader,), daemon=True).start()
    out, sys.stdout = sys.stdout.buffer, sys.stderr

    def tell(event: Event) -> None:
        # Not into a file object's buffer first: whoever waits must hear of it now.
        out.write(pickle.dumps(event))
        out.flush()

    leader.begin(targets)
    for target in targets:
        if (known := leader.record.models.get(target.key)) is not None:
            tell(Event(target, "done", outcome=known))
    for event in leader.events("done"):
        if event is not None:
            tell(event)
    leader.close()


def _end_with_parent(leader: Leader) -> None:
    # No file object: one that a daemon thread reads makes Python's own end a fatal error.
    os.read(0, 1)
    leader.close()
    os._exit(1)


if __name__ == "__main__":
    main()
