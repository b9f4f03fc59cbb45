"""The scheduler against a simulated pytest-xdist: workers, their queues, crashes, the end."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pytest_ollama_warmup.distributed.scheduler import EndOfRun, GroupScheduling
from pytest_ollama_warmup.warmup.run_directory import SharedFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xdist.workermanage import WorkerController

    Group = frozenset[str]

NONE: Group = frozenset()
SHUTDOWN = -1
# Stories: each runs on one worker.
ALONE = {frozenset({"a", "b", "a story"}), frozenset({"a", "b", "another"})}


class Config:
    """What the scheduler asks of pytest's configuration."""

    def __init__(self, workers: int, chunk: int | None = None) -> None:
        self.hook = SimpleNamespace(pytest_collectreport=lambda report: None)
        self._options = {"tx": ["popen"] * workers, "maxschedchunk": chunk}

    def getoption(self, name: str) -> Any:
        return self._options[name]

    getvalue = getoption


class Log:
    loadsched: Any = None

    def __call__(self, *args: object) -> None: ...


Log.loadsched = Log()


@dataclass(eq=False)
class Worker:
    """A worker as xdist's controller sees it, and the loop that runs in it (xdist.remote)."""

    name: str
    queue: deque[int] = field(default_factory=deque)
    shutting_down: bool = False
    item: int | None = None
    running: int | None = None
    over: bool = False
    messages: int = 0

    @property
    def gateway(self) -> SimpleNamespace:
        return SimpleNamespace(id=self.name)

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down, "a worker that shuts down takes no more tests"
        self.messages += 1
        self.queue.extend(indices)

    def shutdown(self) -> None:
        if not self.shutting_down:
            self.queue.append(SHUTDOWN)
        self.shutting_down = True

    def begin(self) -> bool:
        """Begin the next test, if the worker has been sent what comes after it."""
        if self.over or self.running is not None:
            return False
        if self.item is None:
            if not self.queue:
                return False
            self.item = self.queue.popleft()
        if self.item == SHUTDOWN:
            self.over = True
            return True
        if not self.queue:
            return False
        self.running, self.item = self.item, self.queue.popleft()
        return True


class Xdist:
    """Plays DSession: what it calls the scheduler with, and when (xdist 3.8, dsession.py)."""

    def __init__(
        self, groups: list[Group], workers: int, chunk: int | None = None, restarts: int = 1000
    ) -> None:
        self.ids = [f"test_it.py::test[{n}]" for n in range(len(groups))]
        self.groups, self.restarts = groups, restarts
        self.stopped = False
        self.sched = GroupScheduling(
            cast("pytest.Config", Config(workers, chunk)),
            cast("Any", Log()),
            dict(zip(self.ids, groups, strict=True)),
            alone=ALONE,
            is_over=lambda: self.stopped,
        )
        self.began: list[tuple[Worker, int]] = []
        self.workers: list[Worker] = []
        self.ran: Counter[int] = Counter()
        self.crashed: list[str] = []
        self.together: list[set[Group]] = []
        self.turns: list[Group] = []
        for _ in range(workers):
            self.join()

    def join(self, ids: list[str] | None = None) -> Worker:
        worker = Worker(f"gw{len(self.workers)}")
        self.workers.append(worker)
        if self.stopped:
            worker.shutdown()
            self.settle()
            return worker
        self.sched.add_node(cast("WorkerController", worker))
        self.sched.add_node_collection(cast("WorkerController", worker), ids or self.ids)
        if self.sched.collection_is_completed:
            self.sched.schedule()
        self.settle()
        return worker

    def settle(self) -> None:
        """Let each worker begin what it can."""
        for worker in self.workers:
            while worker.begin() and not worker.over:
                if worker.running is not None:
                    self.began.append((worker, worker.running))
                    self.note(worker.running)
            if worker.over and worker in self.nodes:
                assert not self.sched.remove_node(cast("WorkerController", worker))

    def note(self, index: int) -> None:
        running = {self.groups[one.running] for one in self.workers if one.running is not None}
        self.together.append(running - {NONE})
        group = self.groups[index]
        if group and (not self.turns or self.turns[-1] != group):
            self.turns.append(group)

    @property
    def nodes(self) -> list[Worker]:
        return cast("list[Worker]", self.sched.nodes)

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.running is not None]

    def finish(self, worker: Worker) -> None:
        assert worker.running is not None
        index, worker.running = worker.running, None
        self.ran[index] += 1
        self.sched.mark_test_complete(cast("WorkerController", worker), index)
        self.end_if_finished()
        self.settle()

    def crash(self, worker: Worker, *, again: bool = False) -> None:
        was_running = worker.running
        worker.over, worker.running = True, None
        item = self.sched.remove_node(cast("WorkerController", worker))
        assert item == (None if was_running is None else self.ids[was_running])
        if item is not None:
            if again:
                self.sched.mark_test_pending(item)
            else:
                self.crashed.append(item)
        self.restarts -= 1
        if self.restarts < 0:
            self.stop()
        else:
            self.join()
        self.end_if_finished()
        self.settle()

    def stop(self) -> None:
        """What -x and too many crashes do."""
        self.stopped = True
        for worker in self.nodes:
            worker.shutdown()
        self.settle()

    def end_if_finished(self) -> None:
        if self.sched.tests_finished:
            for worker in self.nodes:
                worker.shutdown()

    @property
    def all_over(self) -> bool:
        return all(worker.over for worker in self.workers)


GROUPS = st.sampled_from(
    [NONE, *(frozenset({name}) for name in "abc"), frozenset("ab"), *sorted(ALONE, key=sorted)]
)
CHUNKS = st.sampled_from([None, 1, 3])


@given(
    groups=st.lists(GROUPS, max_size=40),
    workers=st.integers(1, 5),
    chunk=CHUNKS,
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_nothing_stops_the_run(
    groups: list[Group], workers: int, chunk: int | None, data: st.DataObject
) -> None:
    run = Xdist(groups, workers, chunk)
    run.end_if_finished()
    run.settle()
    while run.busy:
        run.finish(data.draw(st.sampled_from(run.busy)))
    assert run.all_over, "it always ends"
    assert Counter(range(len(groups))) == run.ran, "each test once"
    assert all(len(one) <= 1 for one in run.together), "one group at a time"
    assert len(set(run.turns)) == len(run.turns), "one turn for each group"
    for story in ALONE:
        tests = [(worker, index) for worker, index in run.began if groups[index] == story]
        assert len({worker.name for worker, _ in tests}) <= 1, "a story runs on one worker"
        assert tests == sorted(tests, key=lambda one: one[1]), "in its order"


@given(
    groups=st.lists(GROUPS, max_size=40),
    workers=st.integers(1, 5),
    restarts=st.integers(0, 6),
    chunk=CHUNKS,
    data=st.data(),
)
@settings(max_examples=600, deadline=None)
def test_workers_crash_and_runs_are_stopped(
    groups: list[Group], workers: int, restarts: int, chunk: int | None, data: st.DataObject
) -> None:
    run = Xdist(groups, workers, chunk, restarts)
    run.end_if_finished()
    run.settle()
    crashes = 0
    while run.busy:
        what = data.draw(st.sampled_from(["finish"] * 8 + ["crash", "again", "die idle", "stop"]))
        idle = [one for one in run.workers if not one.over and one.running is None]
        before = len(run.together)
        if what in ("crash", "again") and crashes < 8:
            crashes += 1
            run.crash(data.draw(st.sampled_from(run.busy)), again=what == "again")
        elif what == "die idle" and crashes < 8 and idle and not run.stopped:
            crashes += 1
            run.crash(data.draw(st.sampled_from(idle)))
        elif what == "stop" and not run.stopped:
            run.stop()
        else:
            run.finish(data.draw(st.sampled_from(run.busy)))
        if not run.stopped:
            assert all(len(one) <= 1 for one in run.together[before:]), "one group at a time"
    event(f"stopped: {run.stopped}, crashes: {crashes}")
    assert run.all_over, "it always ends"
    assert all(1 == number for number in run.ran.values()), "no test twice"
    blamed = [run.ids.index(one) for one in run.crashed]
    assert len(set(blamed)) == len(blamed)
    assert not set(blamed) & set(run.ran)
    if not run.stopped:
        assert set(range(len(groups))) == {*run.ran, *blamed}, "all tests"


def test_a_group_is_spread_over_all_workers() -> None:
    run = Xdist([frozenset("a")] * 3 + [frozenset("b")] * 3, 3)
    assert {0, 1, 2} == {one.running for one in run.busy}


def test_tests_without_a_model_fill_the_gap_between_groups() -> None:
    run = Xdist([frozenset("a"), frozenset("b"), frozenset("b"), NONE, NONE, NONE, NONE], 2)
    first = next(one for one in run.busy if one.running == 0)
    other = next(one for one in run.busy if one is not first)
    for _ in range(2):
        assert other.running is not None
        assert NONE == run.groups[other.running]
        run.finish(other)
    assert 0 == first.running, "the other worker was never idle"
    while run.busy:
        run.finish(run.busy[0])
    assert [frozenset("a"), frozenset("b")] == run.turns


def test_a_story_whose_worker_crashes_goes_on_elsewhere() -> None:
    story = next(iter(ALONE))
    run = Xdist([story] * 4 + [frozenset("c")] * 2, 2)
    (first,) = run.busy
    run.finish(first)
    run.crash(first)
    assert [run.ids[1]] == run.crashed
    (other,) = run.busy
    assert other is not first
    while run.busy:
        run.finish(run.busy[0])
    assert {0, 2, 3, 4, 5} == set(run.ran)
    assert run.all_over


def test_many_tests_without_a_model_are_sent_in_few_messages() -> None:
    run = Xdist([NONE] * 3000, 2)
    run.settle()
    while run.busy:
        run.finish(run.busy[0])
    assert sum(one.messages for one in run.workers) < 200


def test_a_test_of_an_earlier_group_that_another_plugin_wants_again_waits_for_its_turn() -> None:
    run = Xdist([frozenset("a")] * 2 + [frozenset("b")] * 6, 2)
    while frozenset("b") not in run.turns:
        run.finish(run.busy[0])
    run.sched.mark_test_pending(run.ids[0])
    run.settle()
    while run.busy:
        run.finish(run.busy[0])
    assert 2 == run.ran[0]
    assert all(len(one) <= 1 for one in run.together)
    assert run.all_over


def test_workers_that_collected_differently_run_nothing() -> None:
    run = Xdist([NONE] * 2, 1)
    config = cast("pytest.Config", Config(2))
    run.sched = GroupScheduling(config, cast("Any", Log()), {})
    run.join()
    late = run.join(run.ids[::-1])
    assert [] == list(late.queue)
    assert run.sched.tests_finished


def test_a_worker_that_comes_later_and_collects_differently_is_sent_away() -> None:
    run = Xdist([frozenset("a")] * 6, 2)
    late = run.join(["other"])
    assert late.over
    while run.busy:
        run.finish(run.busy[0])
    assert Counter(range(6)) == run.ran


def end_of_run(path: Path, **options: object) -> EndOfRun:
    values = {"maxfail": 0, **options}
    config = SimpleNamespace(
        getoption=values.__getitem__,
        option=SimpleNamespace(
            maxworkerrestart=values.get("restarts"), numprocesses=values.get("workers")
        ),
    )
    return EndOfRun(cast("pytest.Config", config), SharedFile(path))


def report(outcome: str) -> pytest.TestReport:
    return pytest.TestReport("t", ("t", 1, "t"), {}, cast("Any", outcome), None, "call")


def test_the_end_has_come_where_maxfail_is_reached(tmp_path: Path) -> None:
    end = end_of_run(tmp_path / "ending", maxfail=2)
    for outcome in ("passed", "failed", "skipped"):
        end.pytest_runtest_logreport(report(outcome))
    assert not (tmp_path / "ending").exists()
    end.pytest_runtest_logreport(report("failed"))
    assert (tmp_path / "ending").exists()


def test_without_maxfail_failures_do_not_end_it(tmp_path: Path) -> None:
    end = end_of_run(tmp_path / "ending")
    for _ in range(9):
        end.pytest_runtest_logreport(report("failed"))
    assert not (tmp_path / "ending").exists()


@pytest.mark.parametrize(
    ("options", "most"),
    [({"restarts": "0"}, 0), ({"restarts": "2"}, 2), ({"workers": 1}, 4), ({}, 99)],
)
def test_the_end_has_come_where_too_many_workers_crash(
    tmp_path: Path, options: dict[str, object], most: int
) -> None:
    end = end_of_run(tmp_path / "ending", **options)
    end.pytest_testnodedown(None, None)
    for _ in range(most):
        end.pytest_testnodedown(None, "crashed")
    assert not (tmp_path / "ending").exists()
    end.pytest_testnodedown(None, "crashed")
    assert (tmp_path / "ending").exists() == (most != 99)
