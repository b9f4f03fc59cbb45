"""The directory that the processes of one run share. Each file in it is named here, and only here.

Whatever is written is written whole: who reads sees what was written before, or all of the new.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.warmup.locks import file_name, held
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.user_directory import is_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_ollama_warmup.warmup.locks import Heartbeat

# What is gone through once in a run: for each host, and there for each model.
Stage = Literal["server", "pull", "load"]
Notes = Literal["waits", "lost", "reordered", "set-ups"]

_POLL_S = 0.02
_TRIES = 50
_PREFIX = "pytest-ollama-warmup-run-"


class SharedFile:
    """A file of JSON, or (with nothing in it) a flag."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether any process has written it."""
        return self.path.exists()

    def read(self, missing: Any = None) -> Any:
        """Return what it holds, *missing* where nobody has written it."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return missing

    def write(self, data: object) -> None:
        """Replace what it holds; readers never see half of it, with or without a lock."""
        partial = self.path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(data), encoding="utf-8")
        partial.replace(self.path)

    def set(self) -> bool:
        """Make a flag; return whether this process was the first to do so."""
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class HostDirectory:
    """What the processes of a run share of one host.

    *limit_s* is how long a process that works may show no progress, in seconds.
    """

    def __init__(self, path: Path, limit_s: float) -> None:
        self.path, self.limit_s = path, limit_s
        self.crowds = SharedFile(path / "crowds.json")
        """Sets of models that did not fit into memory together in earlier runs."""
        self.displaced = SharedFile(path / "displaced.json")
        """The models that had to make room in this run, by the one that took their place."""
        self.room_lock = path / "room.lock"

    def once(
        self,
        stage: Stage,
        key: str,
        do: Callable[[Heartbeat], Outcome],
        on_wait: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Return the recorded outcome of *stage* for *key*, going through it if there is none.

        A failure is recorded like a success, so that the other workers report it rather than each
        repeating a download that cannot work. When the process that works dies, the kernel frees
        its lock and the next waiter works. *on_wait* is called while another process works.

        Raises:
            WaitedTooLong: another process works, and shows no progress.
        """
        if (recorded := self.outcome_of(stage, key)) is not None:
            return recorded
        with held(self._path(stage, key, ".lock"), key, self.limit_s, on_wait) as heartbeat:
            if (recorded := self.outcome_of(stage, key)) is not None:
                return recorded
            outcome = do(heartbeat)
            SharedFile(self._path(stage, key, ".json")).write(outcome.to_dict())
        return outcome

    def outcome_of(self, stage: Stage, key: str) -> Outcome | None:
        """Return the recorded outcome of *stage* for *key* without waiting."""
        data = SharedFile(self._path(stage, key, ".json")).read()
        return None if data is None else Outcome.from_dict(data)

    @property
    def server(self) -> Outcome | None:
        """Whether the server answers; None where no process has asked it."""
        return self.outcome_of("server", "server")

    def outcomes(self) -> list[Outcome]:
        """Return how far each model has come: that it is loaded, else that it is pulled."""
        outcomes = {}
        for stage in ("pull", "load"):
            for path in sorted(self.path.glob(f"{stage}-*.json")):
                outcome = Outcome.from_dict(SharedFile(path).read())
                outcomes[outcome.key] = outcome
        return [*outcomes.values()]

    def ledger(self, key: str) -> SharedFile:
        """Return the file of what is known of a model since it was warmed up."""
        return SharedFile(self.path / f"guard-{file_name(key)}.json")

    def ledgers(self) -> list[SharedFile]:
        """Return those of all models."""
        return [SharedFile(path) for path in sorted(self.path.glob("guard-*.json"))]

    def place_lock(self, place: str) -> Path:
        """Return the lock of a place in memory, which several variants of a model share."""
        return self.path / f"place-{file_name(place)}.lock"

    def looks(self, by: str) -> Path:
        """Return the file of what the process *by* saw in the server's memory."""
        return self.path / f"looks-{by}.jsonl"

    def all_looks(self) -> list[Path]:
        """Return those of all processes."""
        return sorted(self.path.glob("looks-*.jsonl"))

    def _path(self, stage: Stage, key: str, suffix: str) -> Path:
        return self.path / f"{stage}-{file_name(key)}{suffix}"


class RunDirectory:
    """What the processes of a run share; *limit_s* is as for ``HostDirectory``."""

    def __init__(self, path: Path, limit_s: float) -> None:
        self.path, self._limit_s = path, limit_s
        self.groups = SharedFile(path / "groups.json")
        """The sets of models that take turns, in their order."""
        self.variants = SharedFile(path / "variants.json")
        """By model, the contexts that tests ask for by name."""
        self.gates = SharedFile(path / "gates.json")
        """By test, where it is expected to skip before it needs its models."""
        self.address = SharedFile(path / "address.json")
        """The server, or one for each worker, that the controller has chosen since."""
        self.ending = SharedFile(path / "ending")
        """A flag: the run ends early, and pytest-xdist releases tests whose turn has not come."""
        self.mixed = SharedFile(path / "mixed")
        """A flag: models are loaded, and only some of the selected tests say that they need one."""
        self.watched = SharedFile(path / "watched")
        """A flag: a listed model is ready, and no test says that it needs it."""

    @classmethod
    def make(cls, limit_s: float) -> RunDirectory:
        """Make the directory of a run, and remove those that runs of this user have left behind.

        Signals end a run without a word. They are not caught: a handler in Python would keep a test
        that hangs in C code from ending.
        """
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*.*"):
            with suppress(OSError):
                if _is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
        made = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}.{_processes()}-")
        return cls(Path(made), limit_s)

    def remove(self) -> None:
        """Remove the directory of a run that is over, and all in it."""
        for _ in range(_TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            # A thread whose work was cut writes down how that ended.
            clock.sleep(_POLL_S)

    def host(self, url: str) -> HostDirectory:
        """Return the part that belongs to one host of the run."""
        path = self.path / f"host-{file_name(url)}"
        path.mkdir(exist_ok=True)
        return HostDirectory(path, self._limit_s)

    def hosts(self) -> list[HostDirectory]:
        """Return the parts of all hosts that any process has met."""
        return [HostDirectory(path, self._limit_s) for path in sorted(self.path.glob("host-*"))]

    @property
    def has_outcomes(self) -> bool:
        """Whether any process of the run has made a model ready, asked a server, or tried to."""
        return any(host.server or host.outcomes() for host in self.hosts())

    def requirements(self, worker: str) -> SharedFile:
        """Return the file of what the tests of *worker* require."""
        return SharedFile(self.path / f"requirements-{worker}.json")

    def ran_tests(self, by: str) -> Path:
        """Return the file of the tests that the process *by* ran."""
        return self.path / f"tests-{by}.jsonl"

    def all_ran_tests(self) -> list[Path]:
        """Return those of all processes."""
        return sorted(self.path.glob("tests-*.jsonl"))

    def warned(self, url: str) -> SharedFile:
        """Return the flag that a secret is sent to *url* unencrypted, and that was said."""
        return SharedFile(self.path / f"warned-{file_name(url)}")

    def leave(self, by: str, notes: Notes, content: object) -> None:
        """Leave notes of the process *by* for the summary, if there are any.

        Where that cannot be written, the run goes on without.
        """
        if content:
            with suppress(OSError):
                SharedFile(self.path / f"{notes}-{by}.json").write(content)

    def left(self, notes: Notes) -> Iterator[dict[str, Any]]:
        """Yield what each process has left."""
        for path in sorted(self.path.glob(f"{notes}-*.json")):
            yield SharedFile(path).read({})


def _is_abandoned(folder: Path) -> bool:
    match = re.fullmatch(r"(\d+)\.(\w+)-.*", folder.name.removeprefix(_PREFIX))
    # On Windows to ask for a process is to end it; and of containers that share the directory each
    # counts processes by itself.
    if match is None or match[2] != _processes() or not is_private(folder) or os.name == "nt":
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _processes() -> str:
    """Return the name of the set of processes whose numbers are unique."""
    try:
        return re.sub(r"\W", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return "all"
