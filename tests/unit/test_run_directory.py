"""Work done once among threads and among processes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from pytest_ollama_warmup.errors import WaitedTooLong
from pytest_ollama_warmup.warmup import locks, user_directory
from pytest_ollama_warmup.warmup.locks import Heartbeat, held, sweep
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.run_directory import HostDirectory, RunDirectory
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "registry.ollama.ai/library/llama3.2:1b,num_ctx=64"


def outcome(by: str, key: str = KEY) -> Outcome:
    return Outcome(key=key, model="llama3.2:1b", status="ready", by=by)


def never(heartbeat: Heartbeat) -> Outcome:
    raise AssertionError("the work was done again")


class Processes:
    """Python programs that share a directory; all of them end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, program: str, *args: str) -> subprocess.Popen[str]:
        prelude = textwrap.dedent(
            """
            import os, sys, time
            from pathlib import Path
            from pytest_ollama_warmup.warmup.locks import held
            from pytest_ollama_warmup.warmup.run_directory import HostDirectory
            from pytest_ollama_warmup.warmup.outcome import Outcome
            folder = Path(sys.argv[1])
            def outcome(by): return Outcome(key="k", model="m", status="ready", by=by)
            def say(text): print(text, flush=True)
            """
        )
        started = subprocess.Popen(
            [sys.executable, "-c", prelude + textwrap.dedent(program), str(self.folder), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(started)
        return started

    def stop(self) -> None:
        for one in self._started:
            one.kill()
            one.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.stop()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_one_thread_works_and_the_others_get_its_record(tmp_path: Path) -> None:
    started = threading.Barrier(8)
    worked: list[str] = []

    def worker(number: int) -> Outcome:
        def work(heartbeat: Heartbeat) -> Outcome:
            worked.append(str(number))
            return outcome(str(number))

        started.wait()
        return HostDirectory(tmp_path, 60).once("load", KEY, work)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(worker, range(8)))
    assert 1 == len(worked)
    assert {outcome(worked[0])} == set(seen)


def test_one_process_works_and_the_others_get_its_record(processes: Processes) -> None:
    program = """
        def work(heartbeat):
            with (folder / "worked").open("a") as log:
                log.write(sys.argv[2])
            return outcome(sys.argv[2])
        say("ready")
        sys.stdin.readline()
        say(HostDirectory(folder, 60).once("load", "k", work).by)
    """
    started = [processes.start(program, str(number)) for number in range(4)]
    assert ["ready"] * 4 == [line_of(one) for one in started]
    for one in started:
        release(one)
    seen = [line_of(one) for one in started]
    assert [(processes.folder / "worked").read_text()] * 4 == seen


def test_a_follower_waits_for_the_leader_and_then_does_not_work(processes: Processes) -> None:
    leader = processes.start(
        """
        def work(heartbeat):
            say("works")
            sys.stdin.readline()
            return outcome("leader")
        HostDirectory(folder, 60).once("load", "k", work)
        """
    )
    assert "works" == line_of(leader)
    directory = HostDirectory(processes.folder, 60)
    assert None is directory.outcome_of("load", "k")
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(directory.once, "load", "k", never)
        release(leader)
        assert "leader" == follower.result(30).by


def test_the_kernel_passes_the_work_of_a_killed_leader_to_the_next_waiter(
    processes: Processes,
) -> None:
    leader = processes.start(
        """
        def work(heartbeat):
            say("works")
            time.sleep(60)
        HostDirectory(folder, 60).once("load", "k", work)
        """
    )
    assert "works" == line_of(leader)
    with ThreadPoolExecutor(1) as pool:
        heir = pool.submit(
            HostDirectory(processes.folder, 60).once,
            "load",
            "k",
            lambda heartbeat: outcome("heir", "k"),
        )
        leader.send_signal(signal.SIGKILL)
        assert "heir" == heir.result(30).by
    assert outcome("heir", "k") == HostDirectory(processes.folder, 60).outcome_of("load", "k")


def test_a_failure_is_recorded_and_not_tried_again(tmp_path: Path) -> None:
    failure = Outcome(key=KEY, model="m", status="failed", error="no such model")
    assert failure == HostDirectory(tmp_path, 60).once("load", KEY, lambda heartbeat: failure)
    assert failure == HostDirectory(tmp_path, 60).once("load", KEY, never)


def test_work_that_raises_leaves_no_record_and_frees_the_gate(tmp_path: Path) -> None:
    def work(heartbeat: Heartbeat) -> Outcome:
        raise RuntimeError("boom")

    directory = HostDirectory(tmp_path, 60)
    with pytest.raises(RuntimeError, match="boom"):
        directory.once("load", KEY, work)
    assert None is directory.outcome_of("load", KEY)
    assert outcome("second") == directory.once("load", KEY, lambda heartbeat: outcome("second"))


def test_different_keys_do_not_wait_for_each_other(tmp_path: Path) -> None:
    directory = HostDirectory(tmp_path, 60)
    both = threading.Barrier(2, timeout=30)

    def work(key: str) -> Callable[[Heartbeat], Outcome]:
        def meet(heartbeat: Heartbeat) -> Outcome:
            both.wait()
            return outcome("x", key)

        return meet

    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda key: directory.once("load", key, work(key)), ["a", "b"]))
    assert ["a", "b"] == [one.key for one in seen]
    assert seen == sorted(directory.outcomes(), key=lambda one: one.key)


def test_all_outcomes_are_found_by_any_process(tmp_path: Path) -> None:
    assert [] == HostDirectory(tmp_path, 60).outcomes()
    for key in ("a", "b"):
        HostDirectory(tmp_path, 60).once("load", key, lambda heartbeat, key=key: outcome("x", key))  # type: ignore[misc]
    assert {"a", "b"} == {one.key for one in HostDirectory(tmp_path, 60).outcomes()}


def test_a_reader_never_sees_half_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, seen = HostDirectory(tmp_path, 60), []
    replace = Path.replace

    def look_then_replace(partial: Path, record: Path) -> Path:
        seen.append(
            (
                json.loads(partial.read_text())["by"],
                directory.outcome_of("load", KEY),
                directory.outcomes(),
            )
        )
        return replace(partial, record)

    monkeypatch.setattr(Path, "replace", look_then_replace)
    directory.once("load", KEY, lambda heartbeat: outcome("leader"))
    assert [("leader", None, [])] == seen
    assert outcome("leader") == directory.outcome_of("load", KEY)
    assert [outcome("leader")] == directory.outcomes()


class Clock:
    """The wall clock, as far as the directory reads it; moves only when told to."""

    def __init__(self) -> None:
        self.now = time.time()
        self._passed = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        self._passed += 1.0
        return self._passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(locks, "clock", made)
    return made


def _waiting_beside(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, attempts: list[Callable[[], None]]
) -> None:
    """Let each failing attempt to lock take no time and run the next of *attempts*."""
    import filelock

    def acquire(self: object, **kwargs: object) -> None:
        if not attempts:
            return
        attempts.pop(0)()
        raise filelock.Timeout(str(path))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


def test_a_leader_that_shows_no_progress_is_given_up(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passing(seconds: float) -> Callable[[], None]:
        return lambda: setattr(clock, "now", clock.now + seconds)

    attempts = [passing(10.0), passing(19.0), passing(2.0), passing(1000.0)]
    _waiting_beside(tmp_path / "x.lock", clock, monkeypatch, attempts)
    with (
        pytest.raises(WaitedTooLong) as caught,
        held(tmp_path / "x.lock", "pull of m", 30.0),
    ):
        pytest.fail("the lock was had")
    assert 1 == len(attempts)
    assert "pull of m" == caught.value.what
    assert pytest.approx(31.0) == caught.value.waited_s


def test_a_leader_that_shows_progress_is_waited_for(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = tmp_path / "x.heartbeat"

    def progress() -> None:
        clock.now += 20.0
        pulse.touch()
        os.utime(pulse, (clock.now, clock.now))

    attempts = [progress] * 50
    _waiting_beside(tmp_path / "x.lock", clock, monkeypatch, attempts)
    with held(tmp_path / "x.lock", "m", 30.0):
        assert [] == attempts


def test_who_has_to_wait_is_told_so_at_each_attempt(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with held(tmp_path / "x.lock", "m", 30.0, lambda: told.append("waits")):
        assert [] == told
    attempts: list[Callable[[], None]] = [lambda: None] * 3
    _waiting_beside(tmp_path / "y.lock", clock, monkeypatch, attempts)
    with held(tmp_path / "y.lock", "m", 30.0, lambda: told.append("waits")):
        assert ["waits"] * 3 == told


def test_an_old_sign_of_progress_does_not_shorten_the_wait(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = tmp_path / "x.heartbeat"
    pulse.touch()
    os.utime(pulse, (clock.now - 5000, clock.now - 5000))
    attempts: list[Callable[[], None]] = [lambda: setattr(clock, "now", clock.now + 29)]
    _waiting_beside(tmp_path / "x.lock", clock, monkeypatch, attempts)
    with held(tmp_path / "x.lock", "m", 30.0):
        assert [] == attempts


def test_a_real_leader_without_progress_is_given_up(processes: Processes) -> None:
    leader = processes.start(
        """
        with held(folder / "x.lock", "m", 60):
            say("holds")
            time.sleep(60)
        """
    )
    assert "holds" == line_of(leader)
    with pytest.raises(WaitedTooLong), held(processes.folder / "x.lock", "m", 0.1):
        pytest.fail("the lock was had")


def test_a_waiters_attempts_are_no_progress_and_beats_are(tmp_path: Path) -> None:
    path, pulse = tmp_path / "x.lock", tmp_path / "x.heartbeat"
    with held(path, "m", 60) as heartbeat:
        os.utime(pulse, (1000, 1000))
        with ThreadPoolExecutor(1) as pool:
            waiter = pool.submit(held(path, "m", 0.0).__enter__)
            with pytest.raises(WaitedTooLong):
                waiter.result(30)
        assert 1000 == pulse.stat().st_mtime
        heartbeat()
        assert pulse.stat().st_mtime > 1000


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    # A machine may have a /run/user for us, or not.
    monkeypatch.setattr(user_directory, "_RUNTIME", str(tmp_path / "none"))
    user_directory.user_folder.cache_clear()
    yield tmp_path
    user_directory.user_folder.cache_clear()


def mode_of(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_the_lock_of_a_pull_is_the_users_own(temporary: Path) -> None:
    path = shared_lock_path("pull", "http://h:1", "lib/m:latest")
    assert temporary / ".cache" / "pytest-ollama-warmup-locks" == path.parent
    assert 0o700 == mode_of(path.parent)


def test_one_model_on_one_host_has_one_lock(temporary: Path) -> None:
    paths = [
        shared_lock_path("pull", url, key)
        for url, key in [("http://h:1", "m"), ("http://h:1", "m"), ("http://h:2", "m")]
    ]
    assert paths[0] == paths[1]
    assert paths[0] != paths[2]
    assert paths[0] != shared_lock_path("pull", "http://h:1", "n")


def test_two_names_of_this_machine_are_one_host(temporary: Path) -> None:
    hosts = ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.0.0.1:2", "h:1")
    paths = [shared_lock_path("pull", f"http://{host}", "m") for host in hosts]
    assert 1 == len(set(paths[:3]))
    assert 3 == len(set(paths))


def _symlink(place: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)


def _dangling(place: Path, elsewhere: Path) -> None:
    place.symlink_to(elsewhere)


def _file(place: Path, elsewhere: Path) -> None:
    place.touch(mode=0o600)


def _open_to_all(place: Path, elsewhere: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.parametrize("trap", [_symlink, _dangling, _file, _open_to_all])
def test_a_place_that_others_may_have_made_is_not_used(
    temporary: Path, trap: Callable[[Path, Path], None]
) -> None:
    place, elsewhere = temporary / ".cache" / "pytest-ollama-warmup-locks", temporary / "elsewhere"
    place.parent.mkdir()
    trap(place, elsewhere)
    path = shared_lock_path("pull", "http://h:1", "m")
    assert path.parent.is_dir()
    assert place != path.parent
    assert elsewhere != path.parent.resolve()
    assert 0o700 == mode_of(path.parent)


def test_a_folder_of_another_user_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shared_lock_path("pull", "http://h:1", "m").parent
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    user_directory.user_folder.cache_clear()
    path = shared_lock_path("pull", "http://h:1", "m")
    assert place != path.parent
    assert 0o700 == mode_of(path.parent)


@pytest.mark.parametrize("key", [KEY, "../../escape", "a\\b:c*?", "x" * 5000, "模型", "nul\0"])
def test_any_key_makes_a_safe_file_name(tmp_path: Path, temporary: Path, key: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    HostDirectory(run, 60).once("load", key, lambda heartbeat: outcome("x", key))
    names = {path.name for path in run.iterdir()} | {
        shared_lock_path("pull", "http://h/p", key).name
    }
    assert all(
        name.isascii() and name.replace("-", "").replace(".", "").isalnum() for name in names
    )
    assert outcome("x", key) == HostDirectory(run, 60).outcome_of("load", key)


def test_keys_that_differ_have_records_that_differ(tmp_path: Path) -> None:
    HostDirectory(tmp_path, 60).once("load", "a", lambda heartbeat: outcome("x", "a"))
    assert None is HostDirectory(tmp_path, 60).outcome_of("load", "A")


def test_two_runs_with_a_tmpdir_each_have_one_lock(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in ("one", "two"):
        monkeypatch.setattr(tempfile, "tempdir", str(temporary / name))
        user_directory.user_folder.cache_clear()
        paths.append(shared_lock_path("pull", "http://h:1", "m"))
    assert paths[0] == paths[1]


def test_where_no_home_can_be_used_two_processes_have_one_lock(temporary: Path) -> None:
    program = """
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path
print(*{shared_lock_path("pull", "http://h:1", "m") for _ in range(2)})
"""
    (temporary / ".cache").touch()
    environ = {**os.environ, "HOME": str(temporary), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", program]
    runs = [
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    place = Path(runs[0].strip()).parent
    assert (temporary, 0o700) == (place.parent, mode_of(place))


def test_a_place_of_nobody_leaves_nothing_behind(temporary: Path) -> None:
    program = """
import os, tempfile
from pytest_ollama_warmup.warmup.user_directory import shared_lock_path
places = {shared_lock_path("pull", "http://h:1", name).parent for name in "abc"}
print(*places)
"""
    (temporary / ".cache").touch()
    (temporary / f"pytest-ollama-warmup-locks-{os.getuid()}").mkdir(mode=0o755)
    environ = {**os.environ, "HOME": str(temporary), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    (place,) = done.stdout.split()
    assert temporary == Path(place).parent
    assert not Path(place).exists()


def abandon(folder: Path, pid: int) -> Path:
    path = folder.with_name(re.sub(r"run-\d+", f"run-{pid}", folder.name))
    path.mkdir(mode=0o700)
    (path / "outcome").touch()
    return path


def test_what_a_killed_run_has_left_is_removed_by_the_next(temporary: Path) -> None:
    first = RunDirectory.make(60).path
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, others = abandon(first, ended.pid), abandon(first, os.getppid())
    elsewhere = left.with_name(left.name.replace("pid", "other"))
    elsewhere.mkdir(mode=0o700)
    open_to_all = left.with_name(left.name + "x")
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    RunDirectory.make(60)
    assert not left.exists()
    # That of a run that goes on, of processes that are counted elsewhere, of nobody in particular.
    assert all(one.exists() for one in (first, others, elsewhere, open_to_all))


def test_locks_that_nobody_has_taken_for_long_are_removed(tmp_path: Path) -> None:
    for name in ("old.lock", "old.heartbeat", "held.lock", "new.lock", "new.heartbeat"):
        (tmp_path / name).touch()
    with FileLock(tmp_path / "held.lock"):
        for name in ("old.lock", "held.lock"):
            os.utime(tmp_path / name, (0, 0))
        sweep(tmp_path, 3600.0)
        left = {"held.lock", "new.lock", "new.heartbeat", "swept"}
        assert left == {path.name for path in tmp_path.iterdir()}
        (tmp_path / "old.lock").touch()
        os.utime(tmp_path / "old.lock", (0, 0))
        sweep(tmp_path, 3600.0)
        assert (tmp_path / "old.lock").exists()
