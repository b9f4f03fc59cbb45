"""Is a model still warm before the test that needs it? Brings back what is gone.

The guard never makes a suite worse than it would be without: to a model that is resident nothing is
sent, whatever options it runs with, so that no load takes place that the tests would not have had.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from pytest_ollama_warmup.errors import ServerUnreachable, WarmupError
from pytest_ollama_warmup.ollama.answers import ModelInfo
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.warmup.gate import Beat, Users, file_name, held, write_whole
from pytest_ollama_warmup.warmup.load import ensure_loaded
from pytest_ollama_warmup.warmup.record import Cold, Known
from pytest_ollama_warmup.warmup.work import Work, resident_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pytest_ollama_warmup.ollama.answers import Resident
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome
    from pytest_ollama_warmup.warmup.work import Terms

    Wanted = Sequence[tuple[Target, Outcome]]
    Contexts = Callable[[Target], set[int]]

# A server that others use too: who is evicted so often would only evict them in turn.
OFTEN, OFTEN_S = 3, 300.0
GLANCE_EVERY_S = 0.25
# How long a load by another test may take at least, and how often to look whether it is over.
AGAIN_S, AGAIN_EVERY_S = 2.0, 0.05


def _no_others(target: Target) -> set[int]:
    return set()


class CannotLook(WarmupError):
    """What answers is no Ollama: a mocking library, or a proxy that has come between."""


class Ledger:
    """What is known of one model, in the directory that the processes of a run share."""

    def __init__(self, folder: Path, key: str, limit_s: float, first: Known) -> None:
        self._first = first
        self._path, self._limit_s = folder / f"guard-{file_name(key)}.json", limit_s
        self._what = key

    def known(self) -> Known:
        """Return what is known by now."""
        try:
            return _read(self._path)
        except FileNotFoundError:
            return self._first

    def write(self, known: Known) -> None:
        """Replace what is known; the caller holds the lock."""
        write_whole(self._path, asdict(known))

    def held(self) -> Any:
        """Hold the lock; see :func:`pytest_ollama_warmup.warmup.gate.held`."""
        return held(self._path.with_suffix(".lock"), self._what, self._limit_s)


def all_known(folder: Path) -> list[Known]:
    """Return what is known of each model of a run, at its end, first of those on its own server.

    Only others have a *host*.
    """
    own, others = (sorted(folder.glob(one)) for one in ("guard-*.json", "host-*/guard-*.json"))
    return [replace(_read(path), host="") for path in own] + [_read(path) for path in others]


def _read(path: Path) -> Known:
    return Known.from_dict(json.loads(path.read_text(encoding="utf-8")))


class Guard:
    """Looks at one server for one process, before each test that needs a model.

    *wait* waits for a server that has gone away, and raises ServerUnreachable where it stays away.
    """

    def __init__(
        self, client: Client, folder: Path, terms: Terms, by: str, wait: Callable[[], object]
    ) -> None:
        self._users = Users(folder, by)
        self._client, self._folder, self._by, self._wait = client, folder, by, wait
        self._terms = replace(terms, warm="load")
        self._ledgers: dict[str, Ledger] = {}
        self.seen: dict[str, Counter[int]] = {}
        """By key of each model, before how many tests it had which context."""
        self._expires: dict[str, float] = {}
        self._lost, self._after, self._next_glance = False, "", 0.0

    def check(
        self,
        wanted: Wanted,
        test: str,
        beside: Contexts = _no_others,
        may_load: Callable[[], bool] = lambda: True,
    ) -> None:
        """See that all of *wanted* is resident before *test*, loading again what is not.

        *beside* returns the contexts that other tests want a model with: no change of habit. Where
        *may_load* forbids it, what is gone is left to the test.

        Raises:
            ServerUnreachable: nothing answers, also after the wait for it.
            LoadFailed: a model is gone and does not load again.
            CannotLook: what answers cannot be asked.
        """
        after, self._after = self._after, test
        resident = self._look()
        for target, outcome in wanted:
            found = resident_as(resident, target.spec.model_key, outcome.digest)
            if found is None:
                self._bring_back(target, outcome, resident, test, after, may_load=may_load)
            else:
                self._note(target, outcome, found, beside)

    def glance(self, wanted: Wanted, test: str, may_load: Callable[[], bool]) -> None:
        """Look whether *wanted* are resident, between tests that do not say what they need.

        Four times a second at most. A model that is gone is loaded again once in a run, and not
        where *may_load* forbids it: the tests may not need it any more.
        """
        after, self._after = self._after, test
        if time.monotonic() < self._next_glance:
            return
        # Not again where this fails: nobody has said that the server is needed, and one that hangs
        # would hold up each test.
        self._next_glance = float("inf")
        resident = self._client.resident()
        self._next_glance = time.monotonic() + GLANCE_EVERY_S
        for target, outcome in wanted:
            found = resident_as(resident, target.spec.model_key, outcome.digest)
            if found is not None:
                self._note(target, outcome, found, _no_others)
            elif may_load() and not self._ledger(target, outcome).known().colds:
                self._bring_back(target, outcome, resident, test, after, once=True)

    def _look(self) -> list[Resident]:
        try:
            try:
                return self._client.resident()
            except ServerUnreachable:
                waited_before, self._lost = self._lost, True
                if waited_before:
                    # One test has waited for it; the next ones must not, each.
                    raise
                self._wait()
                return self._client.resident()
        except ServerUnreachable:
            raise
        # Also what a mocking library raises that a session fixture has started: it patches httpx
        # for all threads.
        except Exception as exc:
            raise CannotLook(str(exc)) from exc

    def _note(self, target: Target, outcome: Outcome, found: Resident, beside: Contexts) -> None:
        self._lost = False
        if found.lease_s is not None:
            self._expires[target.key] = time.monotonic() + found.lease_s
        seen, ledger = found.context_length, self._ledger(target, outcome)
        known_context = ledger.known().context
        if seen and outcome.context_length and seen != known_context and seen in beside(target):
            # Another test's variant, which this test does not ask for.
            with ledger.held():
                known = ledger.known()
                ledger.write(replace(known, switches=known.switches + 1))
            return
        if seen:
            self.seen.setdefault(target.key, Counter())[seen] += 1
        if seen == dict(target.spec.options).get("num_ctx"):
            # As asked, whatever another test had made of it when its warm-up was over.
            return
        if seen and outcome.context_length and seen != known_context:
            with ledger.held():
                known = ledger.known()
                if seen != known.context:
                    # The tests use another one: theirs from now on, and nothing is sent.
                    ledger.write(replace(known, contexts=(*known.contexts, seen)))

    def _bring_back(
        self,
        target: Target,
        outcome: Outcome,
        resident: list[Resident],
        test: str,
        after: str,
        *,
        once: bool = False,
        may_load: Callable[[], bool] = lambda: True,
    ) -> None:
        ledger = self._ledger(target, outcome)
        if _left_alone(ledger.known(), resident):
            return
        with ledger.held() as beat:
            resident, known = self._look_twice(target, outcome, beat), ledger.known()
            if resident_as(resident, target.spec.model_key, outcome.digest):
                return
            if _left_alone(known, resident) or (once and known.colds):
                return
            if not may_load():
                ledger.write(replace(known, left=known.left + 1))
                return
            names = tuple(sorted(one.name for one in resident))
            lately = [one for one in known.colds if one.start > time.time() - OFTEN_S]
            if len(lately) >= OFTEN:
                ledger.write(replace(known, rests=True))
                return
            reason = self._reason(target, names)
            start, begin = time.time(), time.monotonic()
            target = replace(target, learned=outcome.learned)
            work = self._work(target, known, beat)
            work.leased = outcome.leased
            back = ensure_loaded(work, _info(outcome))
            self._lost = False
            if back is None:
                # It answers, and is not listed: it shares the runner of one that is.
                ledger.write(replace(known, beside=names))
                return
            if back.lease_s is not None:
                self._expires[target.key] = time.monotonic() + back.lease_s
            cold = Cold(
                reason=reason,
                test=test,
                after=after,
                by=self._by,
                start=start,
                seconds=time.monotonic() - begin,
                resident=names,
            )
            ledger.write(replace(known, colds=(*known.colds, cold)))

    def _look_twice(self, target: Target, outcome: Outcome, beat: Beat) -> list[Resident]:
        """Return what is resident, when no test of another process has the server load it anew.

        The server's list lacks a model that loads. To load it here too, with the options that are
        known by now, would make the server load it again for the next test, and so forth.
        """
        load = outcome.step("load")
        until = time.monotonic() + AGAIN_S + 2 * (load.seconds if load else 0.0)
        while True:
            resident = self._look()
            if resident_as(resident, target.spec.model_key, outcome.digest):
                return resident
            if time.monotonic() >= until or not self._users.others(target.spec.model_key):
                # A test may have ended between the two looks.
                return self._look()
            beat()
            time.sleep(AGAIN_EVERY_S)

    def _reason(
        self, target: Target, names: tuple[str, ...]
    ) -> Literal["evicted", "expired", "restarted", "gone"]:
        if self._lost:
            return "restarted"
        if time.monotonic() >= self._expires.get(target.key, float("inf")) - 1:
            return "expired"
        return "evicted" if names else "gone"

    def _work(self, target: Target, known: Known, beat: Beat) -> Work:
        if known.contexts:
            options = {**dict(target.spec.options), "num_ctx": known.context}
            target = replace(
                target, spec=replace(target.spec, options=tuple(sorted(options.items())))
            )
        target = replace(target, request=None)
        pulls = threading.Semaphore(1)
        return Work(self._client, target, self._terms, lambda event: None, beat, pulls)

    def _ledger(self, target: Target, outcome: Outcome) -> Ledger:
        if target.key not in self._ledgers:
            first = Known(
                model=target.spec.title,
                warmed=outcome.context_length,
                host=self._client.host.url,
            )
            limit_s = self._terms.load_timeout_s
            self._ledgers[target.key] = Ledger(self._folder, target.key, limit_s, first)
        return self._ledgers[target.key]


def not_resident(client: Client, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return those that were loaded, and had to make room for others since.

    Raises:
        ApiError, ServerError: the server does not tell.
    """
    resident = client.resident()
    return [
        one
        for one in outcomes
        # Without a context it was never listed: it shares the runner of another one.
        if one.context_length and not _is_among(resident, one)
    ]


def make_room(
    client: Client, wanted: set[str], later: Sequence[set[str]], loaded: Sequence[Outcome]
) -> None:
    """Unload as many of *loaded* as *wanted* lacks, where the server was full before.

    Those go that are needed last, if at all, in *later* sets.

    Raises:
        ApiError, ServerError: the server does not tell, or does not do it.
    """
    resident = client.resident()
    there = {one.key: one for one in loaded if _is_among(resident, one)}
    lacking = len(wanted - there.keys())
    # All that was loaded is still there: so far it had room for each.
    if not lacking or len(there) == len(loaded):
        return
    needed = {key: number for number, keys in reversed([*enumerate(later)]) for key in keys}
    others = sorted(there.keys() - wanted, key=lambda key: needed.get(key, len(later)))
    for key in others[-lacking:]:
        client.unload(there[key].model)


def _is_among(resident: list[Resident], outcome: Outcome) -> bool:
    key = ModelName.parse(outcome.model).key
    return resident_as(resident, key, outcome.digest) is not None


def _left_alone(known: Known, resident: list[Resident]) -> bool:
    return known.rests or any(one.name in known.beside for one in resident)


def _info(outcome: Outcome) -> ModelInfo:
    return ModelInfo(outcome.capabilities, "")
