"""The scheduler for pytest-xdist: all workers run the tests of one set of models at a time.

A worker runs a test only when it has been sent the next one, or the shutdown. So each worker holds
one *parked* test, and whatever is sent to it *releases* that.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xdist.dsession import get_default_max_worker_restart
from xdist.scheduler import LoadScheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

    from pytest_ollama_warmup.warmup.run_directory import SharedFile

    Group = frozenset[str]

# A worker holds the test that it runs and the parked one; of tests that need no model more, so that
# it need not wait for the next after each.
DEPTH, DEPTH_OF_OTHERS = 2, 4
NO_MODEL: Group = frozenset()


class GroupScheduling(LoadScheduling):
    """Sends the tests of one group after the other, and others to workers that would be idle.

    *groups* gives for a test's id the models that it needs. A parked test is released only where
    its group's turn is, or it needs none: two groups at once would evict each other's models.
    A test of one of the groups *alone* runs on the worker that has begun with the group: they are
    stories whose tests need several sets of models.
    *is_over* is whether the run is to end early: whatever is parked has been released then.
    """

    def __init__(
        self,
        config: pytest.Config,
        log: Producer,
        groups: Mapping[str, Group],
        *,
        alone: Set[Group] = frozenset(),
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(config, log)
        self._group_of_id, self._alone = groups, alone
        self._is_over = is_over
        self._groups: list[Group] = []
        self._waiting: dict[Group, deque[int]] = {}
        self._left: dict[Group, int] = {}
        self._running: set[int] = set()
        self._ending: set[WorkerController] = set()
        self._owners: dict[Group, WorkerController] = {}

    @property
    def tests_finished(self) -> bool:
        """Whether nothing is left to send or to wait for.

        Not sooner: xdist then shuts all workers down, which releases all that is parked.
        """
        return self.collection_is_completed and not self.has_pending

    @property
    def has_pending(self) -> bool:
        """Whether tests are left to send or to wait for."""
        return any(self._waiting.values()) or any(self.node2pending.values())

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Note what a worker has collected; one that replaces another must have found the same."""
        super().add_node_collection(node, collection)
        if node not in self.node2collection:
            # It could not know which tests are meant; without it the run ends.
            node.shutdown()

    def schedule(self) -> None:
        """Begin when all workers have collected; serve those that come later."""
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = next(iter(self.node2collection.values()))
            self._groups = [self._group_of_id.get(test, NO_MODEL) for test in self.collection]
            self._waiting[NO_MODEL] = deque()
            for index, group in enumerate(self._groups):
                self._waiting.setdefault(group, deque()).append(index)
            self._left = {group: len(tests) for group, tests in self._waiting.items() if group}
        self._serve(self.nodes)

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        """Note that a test is over, and send what is next."""
        self.node2pending[node].remove(item_index)
        self._finish(item_index)
        # This one first: the others have something to run.
        self._serve([node, *(other for other in self.nodes if other is not node)])

    def mark_test_pending(self, item: str) -> None:
        """Run a test again whose worker has crashed, as other plugins ask for."""
        assert self.collection is not None
        index = self.collection.index(item)
        group = self._groups[index]
        self._waiting[group].appendleft(index)
        owner = self._owners.get(group)
        if owner is not None and owner.shutting_down:
            del self._owners[group]
        if group:
            self._left[group] += 1
        self._serve(self.nodes)

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker; returns the test that it was running when it died."""
        pending = self.node2pending.pop(node)
        self._owners = {group: owner for group, owner in self._owners.items() if owner is not node}
        # One that was only parked has not begun, and nobody is to blame it for the crash.
        began = bool(pending) and (len(pending) > 1 or node in self._ending or self._is_over())
        crashed = pending[0] if began else None
        for index in reversed(pending[1:] if began else pending):
            self._running.discard(index)
            self._waiting[self._groups[index]].appendleft(index)
        if crashed is not None:
            self._finish(crashed)
        self._serve(self.nodes)
        return None if crashed is None or self.collection is None else self.collection[crashed]

    def _finish(self, index: int) -> None:
        self._running.discard(index)
        if group := self._groups[index]:
            self._left[group] -= 1

    def _serve(self, nodes: Sequence[WorkerController]) -> None:
        if self.collection is None or self._is_over():
            return
        nodes = [node for node in nodes if node in self.node2collection]
        # In turns: a group with few tests is spread over all workers.
        while nodes := [node for node in nodes if self._send(node)]:
            pass

    def _send(self, node: WorkerController) -> bool:
        """Send *node* what it is to have next; whether that may not have been all."""
        pending = self.node2pending[node]
        if node.shutting_down or not self._may_release(pending):
            return False
        group = self._next_group(node)
        if group is None:
            # What is left, if anything, is for other workers alone.
            self._ending.add(node)
            self._release(pending)
            node.shutdown()
            return False
        number = 1 if group else self._number_of_others(len(pending))
        if number < 1 or (group and len(pending) >= DEPTH):
            return False
        if group in self._alone:
            self._owners[group] = node
        waiting = self._waiting[group]
        sent = [waiting.popleft() for _ in range(min(number, len(waiting)))]
        self._release(pending)
        pending.extend(sent)
        node.send_runtest_some(sent)
        return True

    def _may_release(self, pending: list[int]) -> bool:
        group = self._groups[pending[-1]] if pending else NO_MODEL
        return not group or group == self._turn()

    def _release(self, pending: list[int]) -> None:
        if pending and self._groups[pending[-1]]:
            self._running.add(pending[-1])

    def _turn(self) -> Group:
        """Return the group whose turn it is: the one that runs, else the first that is left."""
        for index in self._running:
            return self._groups[index]
        return next((group for group, left in self._left.items() if left), NO_MODEL)

    def _next_group(self, node: WorkerController) -> Group | None:
        """Return the group to send *node* a test of: it runs, or is parked until its turn comes."""
        order = [self._turn(), NO_MODEL, *self._left]
        return next(
            (
                group
                for group in order
                if self._waiting.get(group) and self._owners.get(group, node) is node
            ),
            None,
        )

    def _number_of_others(self, held: int) -> int:
        """Return how many tests that need no model to send to a worker that holds *held*."""
        share = len(self._waiting[NO_MODEL]) // len(self.node2pending)
        if share < DEPTH:
            # The last ones are spread over all workers.
            return 1 if held < DEPTH else 0
        least = most = min(DEPTH_OF_OTHERS, share)
        # Where groups are left they fill gaps: the worker must soon be free for the next group.
        if not any(self._waiting[group] for group in self._left):
            least, most = max(least, share // 4), max(most, share // 2)
            if self.maxschedchunk is not None:
                most = min(most, max(DEPTH, self.maxschedchunk))
        return most - held if held < least else 0


class EndOfRun:
    """Lets the workers know that the run ends early: xdist releases all parked tests then."""

    def __init__(self, config: pytest.Config, ending: SharedFile) -> None:
        self._ending = ending
        self._failures, self._most = 0, config.getoption("maxfail") or float("inf")
        self._crashes, self._most_crashes = 0, _most_crashes(config)

    @property
    def has_come(self) -> bool:
        """Whether it has come to that."""
        return self._failures >= self._most or self._crashes > self._most_crashes

    # They run just before xdist shuts the workers down for the same reason.
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what -x and --maxfail count."""
        self._failures += report.failed
        self._check()

    def pytest_testnodedown(self, node: object, error: object) -> None:
        """Count what --max-worker-restart counts."""
        self._crashes += error is not None
        self._check()

    def _check(self) -> None:
        if self.has_come:
            self._ending.set()


def _most_crashes(config: pytest.Config) -> float:
    most = get_default_max_worker_restart(config)
    return float("inf") if most is None else most
