"""Locks among processes: of a piece of work, of what is in use, of a share of the server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import WaitedTooLong
from pytest_ollama_warmup.ollama import clock

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import FileLock

Heartbeat = Callable[[], None]
_POLL_S = 0.02
# What a test uses that does not say which models it needs.
ANY = "any"


def file_name(key: str) -> str:
    """Return a name for *key*, which holds slashes and colons: no file system takes all of them."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@contextmanager
def held(
    path: Path, what: str, limit_s: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[Heartbeat]:
    """Hold the lock file *path*; yields a function to call at each sign of progress.

    *on_wait* is called about twice a second while another process holds it.

    Raises:
        WaitedTooLong: the holder has not called it for *limit_s* seconds.
    """
    # Imported here: most processes of a run only look at what another one has recorded.
    from filelock import FileLock, Timeout

    # Not the lock file itself: each attempt of a waiter truncates that, which renews its time.
    pulse = _pulse_of(path)
    lock, since, patience_s = FileLock(path), clock.time(), 0.0
    while True:
        try:
            _acquire(lock, patience_s)
            break
        except Timeout:
            patience_s = 0.5
            on_wait()
            quiet_s = clock.time() - max(since, _modified(pulse))
            if quiet_s > limit_s:
                raise WaitedTooLong(what, quiet_s) from None
    try:
        pulse.touch()
        yield pulse.touch
    finally:
        lock.release()


def _pulse_of(path: Path) -> Path:
    return path.with_suffix(".heartbeat")


def _acquire(lock: FileLock, patience_s: float) -> None:
    """Acquire *lock* within *patience_s* seconds, also where a test has frozen filelock's clock.

    Raises:
        Timeout: another process has it.
    """
    from filelock import Timeout

    until = clock.monotonic() + patience_s
    while True:
        try:
            lock.acquire(blocking=False)
            return
        except Timeout:
            if clock.monotonic() >= until:
                raise
        clock.sleep(_POLL_S)


class Door:
    """The lock of :func:`held`, for those who only pass: made once, and hardly ever held."""

    def __init__(self, path: Path, what: str, limit_s: float) -> None:
        self._path, self._what, self._limit_s = path, what, limit_s
        self._lock: FileLock | None = None

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Hold the lock, after waiting for it where another process does.

        Raises:
            WaitedTooLong: as :func:`held` does.
        """
        from filelock import FileLock, Timeout

        if self._lock is None:
            self._lock = FileLock(self._path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            with held(self._path, self._what, self._limit_s):
                yield
            return
        try:
            yield
        finally:
            self._lock.release()


def sweep(folder: Path, unused_s: float) -> None:
    """Remove the locks in *folder* that nobody has taken for *unused_s* seconds, once in that time.

    Each server with a port of its own leaves some. Whoever opens one in this very moment locks a
    file that is gone, which is why it must have been left for long.
    """
    from filelock import FileLock, Timeout

    before, swept = clock.time() - unused_s, folder / "swept"
    if _modified(swept) > before:
        return
    swept.touch()
    for path in folder.glob("*.lock"):
        with suppress(OSError, Timeout):
            if path.stat().st_mtime < before:
                with FileLock(path).acquire(blocking=False):
                    _pulse_of(path).unlink(missing_ok=True)
                    path.unlink()


class Users:
    """Which processes use a model now; the kernel frees what a dead one held.

    With *sweeps* what such a one has left in the directory is removed when it is met.

    A model is one by its weights: tests may use it under several names, and with several options.
    """

    def __init__(self, folder: Path, by: str, *, sweeps: bool = False) -> None:
        self._folder, self._by, self._sweeps = folder, by, sweeps
        # Made once: each test takes them.
        self._locks: dict[str, FileLock] = {}

    @contextmanager
    def using(self, keys: Iterable[str]) -> Iterator[None]:
        """Be one that uses the models *keys*; without any it may be all."""
        from filelock import FileLock

        with ExitStack() as held_locks:
            for key in sorted(set(keys)) or [ANY]:
                if key not in self._locks:
                    self._locks[key] = FileLock(self._path(key, self._by))
                held_locks.enter_context(self._locks[key].acquire(poll_interval=_POLL_S))
            yield

    def others(self, key: str) -> bool:
        """Whether another process uses the model *key* now."""
        from filelock import FileLock, Timeout

        for model_key in (key, ANY):
            for path in self._folder.glob(self._path(model_key, "*").name):
                if path != self._path(model_key, self._by):
                    try:
                        FileLock(path).acquire(blocking=False).lock.release()
                    except Timeout:
                        return True
                    if self._sweeps:
                        path.unlink(missing_ok=True)
        return False

    def clear(self) -> None:
        """Remove from the directory what this process has put there."""
        for key in self._locks:
            self._path(key, self._by).unlink(missing_ok=True)
        self._locks.clear()

    def _path(self, key: str, by: str) -> Path:
        return self._folder / f"using-{file_name(key)}-{by}.lock"


class Slots:
    """At most *number* holders at a time, among processes that share a directory.

    When a holder dies, the kernel frees its slot.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot, after waiting for one as long as all are held."""
        from filelock import FileLock, Timeout

        slots = [FileLock(self._folder / f"slot-{index}.lock") for index in range(self._number)]
        # One waits for a slot, the others for their turn to wait: whoever has waited for long is
        # not overtaken again and again by those who have just let go.
        with FileLock(self._folder / "slots.lock").acquire(poll_interval=_POLL_S):
            while True:
                for slot in slots:
                    with suppress(Timeout):
                        slot.acquire(blocking=False)
                        break
                else:
                    clock.sleep(_POLL_S)
                    continue
                break
        try:
            yield
        finally:
            slot.release()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
