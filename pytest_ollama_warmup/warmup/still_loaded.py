"""Is a model still warm before the test that needs it? Loads again what is gone.

The guard acts on evidence. To a model that is loaded nothing is sent, whatever options it runs
with. A model that is missing may be reloading for another worker's test: it is gone only
where nobody else is inside a test that needs it. A load that turned out to be of no use is not made
a second time. So no load takes place that the tests would not have had.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import (
    ApiError,
    ServerError,
    ServerUnreachable,
    WarmupError,
    words_of,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.replaced_httpx import is_for_us
from pytest_ollama_warmup.ollama.responses import UNKNOWN, ModelInfo, loaded_as
from pytest_ollama_warmup.warmup.job import Work
from pytest_ollama_warmup.warmup.load import ensure_loaded
from pytest_ollama_warmup.warmup.locks import Door, Heartbeat, Users, held
from pytest_ollama_warmup.warmup.looks import LookLog
from pytest_ollama_warmup.warmup.outcome import Known, Reload
from pytest_ollama_warmup.warmup.room_in_memory import fits_runner, runs_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pytest_ollama_warmup.config.terms import Terms
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.responses import LoadedModel
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.room_in_memory import Room
    from pytest_ollama_warmup.warmup.run_directory import HostDirectory

    Wanted = Sequence[tuple[Target, Outcome]]
    Contexts = Callable[[Target], set[int]]

# A server that others use too: a model that is gone so often would only be fought over.
OFTEN, OFTEN_S = 3, 300.0
# How long a test of another worker may take to load a model, and how often to look whether it has.
RELOAD_S, RELOAD_EVERY_S = 2.0, 0.05
# How many such waits may change nothing: where tests unload a model, each test would wait.
WAITS = 2
# How long the server may take to describe a model that is in memory.
SHOW_S = 10.0


class CannotLook(WarmupError):
    """What answers is no Ollama: a mocking library, or a proxy that has come between."""

    words: str

    def _text(self) -> str:
        return f"cannot see whether models are still warm: {self.words}"


class Ledger:
    """What is known of one model, in the directory that the processes of a run share.

    *place* is what it shares with other variants of the model: their lock is the same.
    """

    def __init__(self, directory: HostDirectory, place: str, limit_s: float, first: Known) -> None:
        self._first, self._what, self._limit_s = first, place, limit_s
        self._file, self._lock = directory.ledger(first.key), directory.place_lock(place)
        self._door = Door(self._lock, place, limit_s)

    def known(self) -> Known:
        """Return what is known by now."""
        data = self._file.read()
        return self._first if data is None else Known.from_dict(data)

    def write(self, known: Known) -> None:
        """Replace what is known; the caller holds the lock."""
        self._file.write(known.to_dict())

    def held(self) -> AbstractContextManager[Heartbeat]:
        """Hold the lock; see :func:`pytest_ollama_warmup.warmup.locks.held`."""
        return held(self._lock, self._what, self._limit_s)

    def passing(self) -> AbstractContextManager[None]:
        """Hold the same lock for a moment, which each test does."""
        return self._door.passing()


def all_known(directory: HostDirectory) -> Iterator[Known]:
    """Yield what the processes of a run know of each model at one server."""
    for file in directory.ledgers():
        yield Known.from_dict(file.read())


class Guard:
    """Looks at one server for one process, before and after each test that needs a model.

    *wait* waits for a server that has gone away, and raises ServerUnreachable where it stays away.
    *room* hears of models that had to make room for others.
    """

    def __init__(
        self,
        client: Client,
        directory: HostDirectory,
        terms: Terms,
        by: str,
        wait: Callable[[], object],
        room: Room,
    ) -> None:
        self.users, self.log = Users(directory.path, by), LookLog(directory, by)
        self._room, self._names = room, set[str]()
        self._client, self._directory, self._by, self._wait = client, directory, by, wait
        self._terms = terms._replace(warm="load")
        self._ledgers: dict[str, Ledger] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._lost = False

    def before(
        self,
        wanted: Wanted,
        test: str,
        beside: Contexts,
        may_load: Callable[[], bool],
        unmarked: Sequence[str] = (),
    ) -> None:
        """See that all of *wanted* is loaded before *test*, loading again what is gone.

        *unmarked* are tests that have run since the last look, and may have used any model.

        *beside* returns the contexts that other tests want a model with: no change of habit. Where
        *may_load* forbids it, what is gone is left to the test.

        Raises:
            ServerUnreachable: nothing answers, also after the wait for it.
            LoadFailed: a model is gone and does not load again.
            CannotLook: what answers cannot be asked.
        """
        sent, loaded = clock.monotonic(), None
        try:
            loaded = self._loaded()
            if unmarked:
                self.log.write("between", sent, tests=unmarked, loaded=loaded)
            for target, outcome in wanted:
                if (model := _find(loaded, target, outcome)) is not None:
                    self._note(target, outcome, model, beside)
                else:
                    # What was missing stays to be read, also when it is back.
                    self.log.write("between", sent, loaded=loaded)
                    # One with the same weights has its place: a load for this test would take it
                    # from the tests of that one, for nothing should this one use that one too.
                    if not self._is_taken(target, outcome, loaded):
                        self._note_displaced(loaded, target)
                        self._load_again(target, outcome, loaded, test, may_load)
                    sent, loaded = clock.monotonic(), self._loaded()
        finally:
            # Also where that failed: the test begins now.
            keys = [target.key for target, _ in wanted]
            self.log.write("before", sent, tests=[test], keys=keys, loaded=loaded)

    def after(self, wanted: Wanted, test: str, beside: Contexts) -> None:
        """See what *test* used. Whatever keeps us from looking is no matter of the test."""
        sent, keys = clock.monotonic(), [target.key for target, _ in wanted]
        loaded, lost = self._try_to_look()
        self.log.write("after", sent, tests=[test], keys=keys, loaded=loaded, lost=lost)
        self._names = {loaded_model.name for loaded_model in loaded or ()}
        for target, outcome in wanted:
            if (model := _find(loaded or [], target, outcome)) is not None:
                self._note(target, outcome, model, beside)

    def _loaded(self) -> list[LoadedModel]:
        try:
            try:
                return self._client.loaded_models()
            except ServerUnreachable:
                self._names = set()
                self.log.write("own", clock.monotonic(), lost=True)
                waited_before, self._lost = self._lost, True
                if waited_before:
                    # One test has waited for it; the next ones must not, each.
                    raise
                self._wait()
                return self._client.loaded_models()
        except ServerUnreachable:
            raise
        # Also what a mocking library raises that a session fixture has started: it patches httpx
        # for all threads.
        except BaseException as exc:
            if not is_for_us(exc):
                raise
            raise CannotLook(words_of(exc)) from exc

    def _try_to_look(self) -> tuple[list[LoadedModel] | None, bool]:
        try:
            return self._client.loaded_models(), False
        except ServerUnreachable:
            return None, True
        except BaseException as exc:
            if not is_for_us(exc):
                raise
            return None, False

    def _note(self, target: Target, outcome: Outcome, model: LoadedModel, beside: Contexts) -> None:
        """Keep with which context a model would have to be loaded again, and that it was used."""
        self._lost = False
        ledger = self._ledger(target, outcome)
        entry = ledger.known()
        if entry != self._noted(entry, target, model, beside):
            with ledger.held():
                ledger.write(self._noted(ledger.known(), target, model, beside))

    def _noted(self, entry: Known, target: Target, model: LoadedModel, beside: Contexts) -> Known:
        context = model.context_length
        if entry.unproven not in ("", model.expires):
            entry = entry._replace(unproven="")
        # Unknown, as before, as asked for, or as another test wants its own variant.
        if (
            not (context and entry.context)
            or context == entry.context
            or "num_ctx" in dict(target.spec.options)
            or context in beside(target)
        ):
            return entry
        return entry._replace(context=context, switches=entry.switches + 1)

    def _load_again(
        self,
        target: Target,
        outcome: Outcome,
        loaded: list[LoadedModel],
        test: str,
        may_load: Callable[[], bool],
    ) -> None:
        ledger = self._ledger(target, outcome)
        entry = ledger.known()
        if entry.rests or any(model.name in entry.beside for model in loaded):
            return
        with ledger.held() as heartbeat:
            gone = self._is_gone(target, outcome, heartbeat)
            if gone is None:
                return
            entry = ledger.known()
            if entry.unproven:
                # It is gone again, and nobody has used it meanwhile.
                entry = entry._replace(rests="unused")
            elif entry.reloads_since(clock.monotonic() - OFTEN_S) >= OFTEN:
                entry = entry._replace(rests="often")
            elif not gone:
                waits = entry.waits + 1
                entry = entry._replace(waits=waits, rests="busy" if waits >= WAITS else "")
            # Where tests do not agree on one context, a load may be made with the wrong one.
            if gone and may_load() and not entry.rests and entry.switches < 2:
                self._reload(target, outcome, ledger, heartbeat, test)
            elif entry != ledger.known():
                ledger.write(entry)

    def _note_displaced(self, loaded: list[LoadedModel], target: Target) -> None:
        """Keep that a model had to make room, where another one has come in its place."""
        names = {model.name for model in loaded}
        came, gone = names - self._names, self._names - names
        if came and target.spec.model_key in {ModelName.parse(name).key for name in gone}:
            self._room.note_displaced(min(came), [target.spec.title])

    def _is_taken(self, target: Target, outcome: Outcome, loaded: list[LoadedModel]) -> bool:
        """Whether a model is loaded that has its weights, and runs with other options."""
        if not outcome.weights:
            return False
        options = {"num_ctx": outcome.learned} if outcome.learned else {}
        context = self._ledger(target, outcome).known().context
        # What tests were seen to ask for counts before what it was loaded with.
        options |= dict(outcome.options) | ({"num_ctx": context} if context else {})
        wanted = runs_with(outcome.parameters, options)
        for model in loaded:
            info = self._info(model.name)
            if info.weights == outcome.weights:
                has = runs_with(info.parameters, {})
                return not fits_runner(wanted, has, model.context_length)
        return False

    def _info(self, name: str) -> ModelInfo:
        """Return what the server says of a model in memory, asking once for each."""
        if name not in self._infos:
            with suppress(ApiError, ServerError):
                self._infos[name] = self._client.show(name, limit_s=SHOW_S) or UNKNOWN
        return self._infos.setdefault(name, UNKNOWN)

    def _is_gone(self, target: Target, outcome: Outcome, heartbeat: Heartbeat) -> bool | None:
        """Return whether a model is not there and nobody loads it; None where its place is taken.

        The server's list lacks a model that is being loaded. To load it here too, with the options
        that are known by now, would make the server load it again for that test, and so forth.
        Nobody enters a test that needs it meanwhile: the caller holds the lock of its place.
        """
        place, until = _place(target, outcome), clock.monotonic() + RELOAD_S
        while True:
            # Asked before the look: a test that has ended since may have loaded it.
            alone = not self.users.others(place)
            loaded = self._loaded()
            if _find(loaded, target, outcome) or self._is_taken(target, outcome, loaded):
                return None
            if alone:
                return True
            if clock.monotonic() >= until:
                return False
            heartbeat()
            clock.sleep(RELOAD_EVERY_S)

    def _reload(
        self, target: Target, outcome: Outcome, ledger: Ledger, heartbeat: Heartbeat, test: str
    ) -> None:
        entry, begin, start = ledger.known(), clock.monotonic(), clock.time()
        work = self._work(target._replace(learned=outcome.learned), entry, heartbeat)
        work.sets_keep_alive = outcome.sets_keep_alive
        back = ensure_loaded(work, ModelInfo(outcome.capabilities, ""))
        took = clock.monotonic() - begin
        self._lost = False
        if work.already_loaded:
            return
        if back is None:
            # It answers, and is not listed: it shares the runner of one that is, or the server's
            # list is of no use.
            names = tuple(sorted(model.name for model in self._loaded()))
            ledger.write(entry._replace(beside=names, rests="" if names else "unseen"))
            return
        self.log.write("own", begin, tests=[test], keys=[back.name.lower()])
        reload = Reload(test=test, by=self._by, start=start, at=begin, seconds=took)
        ledger.write(entry._replace(reloads=(*entry.reloads, reload), unproven=back.expires))

    @contextmanager
    def inside(self, wanted: Wanted) -> Iterator[None]:
        """Be inside a test that needs *wanted*, for other processes to see.

        While one of them finds out whether a model is gone, nobody begins to use it.
        """
        places = {_place(*pair): self._ledger(*pair) for pair in wanted}
        with ExitStack() as using:
            with ExitStack() as doors:
                for _, ledger in sorted(places.items()):
                    doors.enter_context(ledger.passing())
                using.enter_context(self.users.using(places))
            yield

    def _work(self, target: Target, entry: Known, heartbeat: Heartbeat) -> Work:
        if entry.switches:
            options = {**dict(target.spec.options), "num_ctx": entry.context}
            spec = target.spec._replace(options=tuple(sorted(options.items())))
            target = target._replace(spec=spec)
        target = target._replace(request=None)
        pulls = threading.Semaphore(1)
        return Work(self._client, target, self._terms, lambda event: None, heartbeat, pulls)

    def _ledger(self, target: Target, outcome: Outcome) -> Ledger:
        if target.key not in self._ledgers:
            first = Known(
                key=target.key,
                model=target.spec.title,
                context=outcome.context_length,
                host=self._client.host.url,
            )
            limit_s = self._terms.load_timeout_s
            place = _place(target, outcome)
            self._ledgers[target.key] = Ledger(self._directory, place, limit_s, first)
        return self._ledgers[target.key]


def _place(target: Target, outcome: Outcome) -> str:
    """Return what a model has one of in memory: its weights, else its name."""
    return outcome.weights or target.spec.model_key


def _find(loaded: list[LoadedModel], target: Target, outcome: Outcome) -> LoadedModel | None:
    return loaded_as(loaded, target.spec.model_key, outcome.digest)
