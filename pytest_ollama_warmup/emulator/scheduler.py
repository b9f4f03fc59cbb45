"""What an emulated Ollama has in memory: runners with their options and keep-alives.

All behaviour is that of Ollama v0.33.0; where its source was not clear, a real server was asked.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.emulator.script import BUSY, ClientGone, Refusal, ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

RunnerOptions = dict[str, int | bool | None]

# Go's longest duration, 292 years: what the server makes of a negative keep_alive.
FOREVER_S = (2**63 - 1) / 1e9
_POLL_S = 0.01
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_OTHER_TYPES: dict[type, str] = {
    bool: "bool",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}
# main_gpu and use_mmap are pointers in the server: main_gpu 0 is not the same as none at all.
_DEFAULTS: RunnerOptions = {
    "num_ctx": None,
    "num_batch": 512,
    "num_gpu": -1,
    "main_gpu": None,
    "use_mmap": None,
    "num_thread": 0,
    "draft_num_predict": 0,
}


class Load(NamedTuple):
    """A load that succeeded: the model's short name and the options it now runs with."""

    model: str
    options: RunnerOptions


@dataclass(slots=True, eq=False)
class Runner:
    """A loaded model; *model* is the one whose request loaded the weights."""

    model: ScriptedModel
    options: RunnerOptions
    keep_alive_s: float
    users: int = 0
    deadline: float = 0.0
    expires_ns: int = 0
    """When its keep-alive ends, in ns since the epoch; 0 during the request that loaded it."""
    dead: bool = False
    """Whether its process has ended: it stays listed until the next request notices."""
    slot: threading.Lock = field(default_factory=threading.Lock)
    """Held while generating: one at a time, as OLLAMA_NUM_PARALLEL=1 has it."""

    def left_s(self) -> float:
        """Return the rest of its keep-alive; that of a runner at work has not begun."""
        return self.keep_alive_s if self.users else self.deadline - time.monotonic()

    def is_idle(self) -> bool:
        """Whether no request uses it."""
        return self.users == 0

    def check(self) -> None:
        """Find out whether its process still runs.

        Raises:
            Refusal: 500, it does not.
        """
        if self.dead:
            words = "an error was encountered while running the model: unexpected EOF"
            raise Refusal(500, words)

    def fits(self, asked: RunnerOptions) -> bool:
        """Whether a request with the options *asked* needs no reload (``sched.needsReload``)."""
        return all(
            self.options[key] == value
            # No request is too good for a runner that some other one has put on the CPU.
            or (key == "num_gpu" and value == -1)
            # Left to itself, a CPU runner does not map the file.
            or (key == "use_mmap" and self.options[key] is None and value is False)
            for key, value in asked.items()
        )


class Scheduler:
    """Which models are in memory; loads one at a time, in the order of the requests."""

    def __init__(self, max_loaded: int, keep_alive_s: float) -> None:
        self.loads: list[Load] = []
        self.loading: str | None = None
        self.queue: list[object] = []
        self._max_loaded, self._keep_alive_s = max_loaded, keep_alive_s
        self._changed = threading.Condition()
        self._runners: dict[str, Runner] = {}

    def runners_in_memory(self) -> list[Runner]:
        """Return the loaded models, the latest to expire first; one that still loads is none."""
        with self._changed:
            self._expire()
            return sorted(self._runners.values(), key=Runner.left_s, reverse=True)

    @contextlib.contextmanager
    def runner(
        self,
        model: ScriptedModel,
        options: RunnerOptions,
        keep_alive_s: float | None,
        gone: Callable[[], bool],
    ) -> Iterator[Runner]:
        """Lend the runner of *model*, after loading it where none fits; None keeps its keep-alive.

        Raises:
            Refusal: the load fails, or is turned away.
            ClientGone: *gone* said so during the wait; the load is given up.
        """
        with self._changed:
            runner = self._fitting(model, options) or self._load(model, options, gone)
            runner.users += 1
            if keep_alive_s is not None:
                runner.keep_alive_s = keep_alive_s
        try:
            yield runner
        finally:
            with self._changed:
                runner.users -= 1
                runner.deadline = time.monotonic() + runner.keep_alive_s
                # Only when a request is over: it stands still while one is under way.
                runner.expires_ns = time.time_ns() + int(runner.keep_alive_s * 1e9)
                self._changed.notify_all()

    def unload(self, model: ScriptedModel) -> None:
        """End the keep-alive of *model*; a load under way is not touched."""
        with self._changed:
            if runner := self._runners.get(model.weights):
                self._end_keep_alive(runner)

    def kill(self, model: ScriptedModel) -> None:
        """End the process of *model*'s runner, as the system does when memory is short."""
        with self._changed:
            self._runners[model.weights].dead = True

    def clear(self) -> None:
        """Forget all runners, as when the server's process ends."""
        with self._changed:
            self._runners.clear()

    def _fitting(self, model: ScriptedModel, options: RunnerOptions) -> Runner | None:
        self._expire()
        runner = self._runners.get(model.weights)
        if runner is not None and runner.dead:
            del self._runners[model.weights]
            runner = None
        return runner if runner is not None and runner.fits(options) else None

    def _load(
        self, model: ScriptedModel, options: RunnerOptions, gone: Callable[[], bool]
    ) -> Runner:
        if model.busy > 0:
            model.busy -= 1
            raise Refusal(503, BUSY)
        ticket = object()
        self.queue.append(ticket)
        try:
            self._wait(lambda: self.queue[0] is ticket, gone)
            # The request in front may have loaded just this.
            if runner := self._fitting(model, options):
                return runner
            self._make_room(model, gone)
            self.loading = model.name
            began = time.monotonic()
            self._wait(lambda: time.monotonic() - began >= model.load_s, gone)
            if model.load_error is not None:
                raise Refusal(500, model.load_error)
            runner = self._runners[model.weights] = Runner(model, options, self._keep_alive_s)
            self.loads.append(Load(model.name, dict(options)))
            return runner
        finally:
            if self.queue[0] is ticket:
                self.loading = None
            self.queue.remove(ticket)
            self._changed.notify_all()

    def _make_room(self, model: ScriptedModel, gone: Callable[[], bool]) -> None:
        while (victim := self._in_the_way(model)) is not None:
            self._end_keep_alive(victim)
            self._wait(victim.is_idle, gone)

    def _in_the_way(self, model: ScriptedModel) -> Runner | None:
        self._expire()
        misfit = self._runners.get(model.weights)
        if misfit is not None or len(self._runners) < self._max_loaded:
            return misfit
        # Idle before busy, then the shortest keep-alive, then the path of the weights: how long ago
        # a model was used does not count.
        return min(
            self._runners.values(),
            key=lambda runner: (runner.users > 0, runner.keep_alive_s, runner.model.weights),
        )

    def _wait(self, ready: Callable[[], bool], gone: Callable[[], bool]) -> None:
        # Asked at least once: one that left the queue must not load when its turn comes.
        while not gone():
            if ready():
                return
            self._changed.wait(_POLL_S)
        raise ClientGone

    def _end_keep_alive(self, runner: Runner) -> None:
        runner.keep_alive_s = runner.deadline = 0.0

    def _expire(self) -> None:
        now = time.monotonic()
        for key, runner in list(self._runners.items()):
            if not runner.users and runner.deadline <= now:
                del self._runners[key]


def runner_options(
    sent: Mapping[str, object],
    model: ScriptedModel,
    default_num_ctx: int,
    *,
    shift: object = None,
) -> RunnerOptions:
    """Return all runner options of a request that sent *sent*; null and unknown keys count as not.

    *shift* is the request's field of that name: it decides over the runner like an option.

    Raises:
        Refusal: 500, a value of the wrong type.
    """
    options = {**_DEFAULTS, "num_ctx": model.num_ctx or default_num_ctx}
    for key, value in sent.items():
        if key not in options or value is None:
            continue
        kind = "boolean" if key == "use_mmap" else "integer"
        if not isinstance(value, int | float) or isinstance(value, bool) != (kind == "boolean"):
            raise Refusal(500, f'option "{key}" must be of type {kind}')
        options[key] = value if isinstance(value, bool) else int(value)
    options["num_ctx"] = min(max(4, options["num_ctx"] or 0), model.context_length)
    # Any negative number of layers means: as many as fit.
    options["num_gpu"] = max(-1, options["num_gpu"] or 0)
    options["shift"] = shift is not False
    return options


def keep_alive_of(keep_alive: object) -> float | None:
    """Return the seconds that a request's ``keep_alive`` asks for; None where it says nothing.

    Raises:
        Refusal: 400, in the words of Go's JSON and duration readers.
    """
    if keep_alive is None:
        return None
    if isinstance(keep_alive, str):
        seconds = _go_duration(keep_alive)
    elif isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        seconds = float(keep_alive)
        if seconds > FOREVER_S:
            # Overflows in the server: the keep-alive has ended before it begins.
            return -1.0
    else:
        raise Refusal(400, f"Unsupported type: '{_OTHER_TYPES[type(keep_alive)]}'")
    return FOREVER_S if seconds < 0 else seconds


def _go_duration(text: str) -> float:
    sign, rest = ("-", text[1:]) if text[:1] == "-" else ("", text.removeprefix("+"))
    seconds = 0.0
    parts = [] if rest == "0" else re.split(r"(?<=[^\d.])(?=[\d.])", rest)
    for part in parts:
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([^\d.]*)", part)
        if match is None:
            raise Refusal(400, f'time: invalid duration "{text}"')
        number, unit = match.groups()
        if not unit:
            raise Refusal(400, f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise Refusal(400, f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(number) * _UNITS[unit]
    return -seconds if sign else seconds
