"""The models of a run as each of its processes sees them: recorded, or brought now."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.errors import (
    LoadFailed,
    NoModelNamed,
    ServerUnreachable,
    WaitedTooLong,
)
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.replaced import as_error, is_for_us, replaced, suppressing
from pytest_ollama_warmup.session import gates, notes
from pytest_ollama_warmup.text import at
from pytest_ollama_warmup.warmup.locks import Beat, Gate, Slots, file_name, held
from pytest_ollama_warmup.warmup.plan import (
    SERVER,
    Target,
    Verdict,
    Want,
    decide,
    resolve,
    target_of,
)
from pytest_ollama_warmup.warmup.preloader import Turns
from pytest_ollama_warmup.warmup.record import NOTICEABLE_S, Outcome, Record
from pytest_ollama_warmup.warmup.room import Room, make_room

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.config.spec import ModelSpec
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.responses import Resident
    from pytest_ollama_warmup.session.gates import Gate as SuiteGate
    from pytest_ollama_warmup.session.gates import SetUp
    from pytest_ollama_warmup.warmup.guard import Guard
    from pytest_ollama_warmup.warmup.job import Event, Say

    AskRequest = Callable[[ModelSpec], Mapping[str, Any] | None]


# A file that holds the sets of models that take turns, in their order.
GROUPS = "groups.json"
# This one holds, by model, the contexts that tests ask for by name.
VARIANTS = "variants.json"
# And this one: the run ends early, and pytest-xdist releases tests whose turn has not come.
ENDING = "ending"
# And this one: models are loaded, and some selected tests say that they need one, others do not.
MIXED = "mixed"
# Here lies what became of models that are only pulled as yet.
_PRESENT = "present"


def elsewhere(outcome: Outcome) -> Outcome:
    """Return *outcome* so that a table tells it from those of the run's other servers."""
    there = f"at {outcome.host}"
    return outcome._replace(notes=(there, *outcome.notes), brief=f"{there}: {outcome.brief}")


def folder_at(root: Path, url: str) -> Path:
    """Return the directory, below that of a run, for one of several servers."""
    folder = root / f"host-{file_name(url)}"
    folder.mkdir(exist_ok=True)
    return folder


def what_is_lost(exc: ServerUnreachable | LoadFailed) -> str:
    """Return the URL of the server that is lost, else what is wrong with the model.

    One request to a server that has ended meets a lost connection, maybe in a load, and the next
    one a refusal.
    """
    for one in (exc, exc.__cause__):
        # A load that takes too long is a matter of its model.
        if isinstance(one, ServerUnreachable) and (one is exc or not one.timed_out):
            return one.url
    return str(exc)


class Run:
    """One process's view. httpx is imported only by the process that has to ask the server.

    *ask_request* returns the suite's own warm-up request for a model, None where it has none.
    *folder* is where the records of one server lie, *root* where those of the run do.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        by: str,
        ask_request: AskRequest = lambda spec: None,
        root: Path | None = None,
    ) -> None:
        self.settings, self.by, self._ask_request = settings, by, ask_request
        self.record = Record()
        self.folder, self.root = folder, root or folder
        # A leader may wait for the server, and then for a load, without a sign of progress.
        self.gate = Gate(folder, settings.load_timeout.value + settings.wait.value)
        self._present = Gate(folder / _PRESENT, self.gate.limit_s)
        self.early: Mapping[str, EarlyLoad] = {}
        """Loads that were asked for before, by the keys of their models."""
        self._client: Client | None = None
        self._known: dict[str, Outcome] = {}
        # Failures that the leader cannot have reported before the tests.
        self._unreported: set[str] = set()
        self._elsewhere: dict[str, Run] = {}
        self.turns = Turns()
        self.room = Room(folder, self.gate)
        self._guard: Guard | None = None
        self._wanted: list[tuple[Target, Outcome]] | None = None
        self._unmarked: list[str] = []
        self._waits: dict[str, float] = {}
        self._lost: dict[str, tuple[str, list[str]]] = {}
        self._turn: set[str] = set()
        self._set_ups: dict[str, SetUp] = {}
        self._gates: dict[str, SuiteGate] | None = None
        self.leaves = False
        """Whether models are left to tests that skipped in the last run."""
        self.opened: set[str] = set()
        """The reasons to skip that this process has seen to be none this time."""

    def close(self) -> None:
        """Cut what is still under way, so that the server stops it too."""
        for run in self._elsewhere.values():
            run.close()
        if self._client is not None:
            self._client.abort()
            with suppressing():
                self._client.close()

    def at(self, host: Host) -> Run:
        """Return the view of the same run on another server, which a suite gives some tests."""
        ours = self.settings.host
        if (host.url, host.login) == (ours.url, ours.login):
            return self
        if host.address not in self._elsewhere:
            self._elsewhere[host.address] = Run(
                self.settings.on(host),
                folder_at(self.root, host.url),
                self.by,
                self._ask_request,
                self.root,
            )
        return self._elsewhere[host.address]

    def outcomes(self) -> dict[str, Outcome]:
        """Return what all processes of the run have recorded, also of other servers."""
        found = self._recorded()
        for folder in sorted(self.root.glob("host-*")):
            present, loaded = Gate(folder / _PRESENT, 0.0), Gate(folder, 0.0)
            for one in [*present.outcomes(), *loaded.outcomes()]:
                if one.key != SERVER:
                    found[at(one.key, one.host)] = elsewhere(one)
        return found

    def own_outcomes(self) -> list[Outcome]:
        """Return what all processes of the run have recorded of the models of this server."""
        return [one for one in self._recorded().values() if one.model]

    def _recorded(self) -> dict[str, Outcome]:
        # What was only pulled at first may have been loaded since.
        return {one.key: one for one in [*self._present.outcomes(), *self.gate.outcomes()]}

    def verdict(self, want: Want) -> Verdict | None:
        """Return why a test that wants *want* cannot run; None when all is ready."""
        try:
            return self._verdict(want, self._targets(want))
        except NoModelNamed as exc:
            return Verdict("fail", str(exc))

    def _verdict(self, want: Want, targets: list[Target]) -> Verdict | None:
        settings = self.settings
        problem, given_by = None, settings.listed.given_by
        for target in targets:
            outcome = self.outcome(target)
            able = outcome.for_tests_that_need(target.spec.capabilities, target.origin)
            if not able.ready:
                # A model that is there, and cannot do what a test asks, is no missing one.
                problem, given_by = able, "default" if outcome.ready else target.given_by
                break
        if not targets:
            problem = self.server()
        if problem is None or problem.ready:
            return None
        policy = decide(settings.on_unavailable.value, want.on_unavailable, given_by, settings.ci)
        reported = problem.key not in self._unreported
        of_model = f"{problem.title}: " if problem.model else ""
        return Verdict(policy, f"{of_model}{problem.brief}" if reported else problem.error)

    def write_notes(self) -> None:
        """Leave to the leader of the run what waited in this process, and what was lost."""
        notes.write(self.folder, self.by, "waits", self._waits)
        notes.write(self.folder, self.by, "lost", self._lost)
        notes.write(self.folder, self.by, "set-ups", self._set_ups)

    def closed_gate(self, test: str) -> SuiteGate | None:
        """Return why *test* is expected to skip before it needs the models that were left to it."""
        if self._gates is None:
            self._gates = gates.read(self.root)
        gate = self._gates.get(test)
        return None if gate is None or gate.reason in self.opened else gate

    def note_set_up(self, test: str, set_up: SetUp) -> None:
        """Keep how the set-up of *test* ended, for the next run."""
        self._set_ups[test] = set_up

    def verdict_now(self, want: Want) -> Verdict | None:
        """Return the same just before the test, and see that what is ready is still warm.

        Raises:
            CannotLook: all was ready; whether it still is cannot be asked.
        """
        self._wanted = None
        try:
            targets = self._targets(want)
        except NoModelNamed as exc:
            return Verdict("fail", str(exc))
        if self.settings.reorders and (self.root / ENDING).exists():
            # Nothing is loaded for a test that only runs because pytest-xdist cannot take it back.
            return Verdict("skip", "skipped: the run is stopping early")
        begin = clock.monotonic()
        if self.settings.group_by_model.value:
            self._make_room({target.key for target in targets})
        verdict = self._verdict(want, targets)
        if (waited_s := clock.monotonic() - begin) >= NOTICEABLE_S:
            self._waits[want.test] = waited_s
        if verdict is not None:
            return verdict
        found = [(target, self.outcome(target)) for target in targets]
        # What runs elsewhere, or is not to be warmed, cannot be found cold.
        wanted = [one for one in found if is_watched(one[1])]
        if (wanted or not found) and self.settings.warm.value != "off":
            self._look_before(wanted, want.test)
        return None

    def _look_before(self, wanted: list[tuple[Target, Outcome]], test: str) -> None:
        from pytest_ollama_warmup.warmup.guard import CannotLook

        self._wanted = wanted
        try:
            self._guarding().before(
                wanted, test, self._contexts, self._may_load, self._taken_unmarked()
            )
        except (ServerUnreachable, LoadFailed) as exc:
            # It was ready once: the test runs and fails by itself, if it does, as it would without.
            self._lost.setdefault(what_is_lost(exc), (str(exc), []))[1].append(test)
        except CannotLook:
            raise
        # Whatever else keeps us from looking: the test would run without us.
        except BaseException as exc:
            if not is_for_us(exc):
                raise
            raise CannotLook(f"{type(exc).__name__}: {exc}") from exc

    def inside(self) -> AbstractContextManager[None]:
        """Return what is held while the test runs before which was just looked.

        Other workers see by it that the test may make the server reload its models.
        """
        return nullcontext() if self._wanted is None else self._guarding().inside(self._wanted)

    def look_after(self, test: str) -> None:
        """See what *test* used, if it was looked before it; never raises."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            with suppressing():
                self._guarding().after(wanted, test, self._contexts)

    def pass_by(self, test: str) -> None:
        """Note that *test* runs, which says nothing of models, and may use some all the same."""
        # Of two or more nobody knows which it was: the others need not be named.
        if len(self._unmarked) < 2:
            self._unmarked.append(test)

    def _taken_unmarked(self) -> list[str]:
        found, self._unmarked = self._unmarked, []
        return found

    def look_between(self) -> None:
        """Write down what is in memory before the first test, or after the last; never raises."""
        from pytest_ollama_warmup.warmup.looks import LookLog

        sent = clock.monotonic()
        with suppressing():
            loaded = self._in_memory()
            log = LookLog(self.folder, self.by)
            log.write("between", sent, tests=self._taken_unmarked(), loaded=loaded)

    def look_at_end(self) -> None:
        """See what tests without a mark have used since the last look; never raises."""
        if self._unmarked and (self.root / MIXED).exists() and not self._lost:
            self.look_between()

    def _in_memory(self) -> list[Resident]:
        if self._client is not None:
            return self._client.resident()
        # A worker that has run no test with a mark has not imported httpx, which takes 40 ms.
        from pytest_ollama_warmup.ollama import plain

        settings = self.settings
        return plain.loaded(settings.host, settings.api_key, settings.headers.value, self.client)

    def _may_load(self) -> bool:
        """Whether what is gone may be loaded before a test.

        Not where several workers use more models than the server keeps: a load for the next test of
        one would take the model of another, which has just been seen to and not been used yet.
        """
        grouped = self.settings.group_by_model.value
        return grouped or self.by == "main" or not self.room.is_short

    def _make_room(self, keys: set[str]) -> None:
        """Where another set of models has its turn now: unload what would else not go by itself.

        A server that is full takes whichever it likes, also one of the same set.
        """
        if keys == self._turn:
            return
        self._turn = keys
        with suppressing():
            groups = [set(one) for one in json.loads((self.root / GROUPS).read_text("utf-8"))]
            later = groups[groups.index(keys) + 1 :]
            loaded = [one for one in self.gate.outcomes() if one.step("load") is not None]
            with held(self.folder / "room.lock", "room for models", self.gate.limit_s):
                make_room(self.client(), keys, later, loaded)

    def _targets(self, want: Want) -> list[Target]:
        listed = self.settings.listed
        return [target_of(spec, listed) for spec in resolve(want, listed)]

    def _guarding(self) -> Guard:
        if self._guard is None:
            from pytest_ollama_warmup.warmup.guard import Guard

            settings = self.settings
            # Nobody starts a server of our own again.
            limit_s = 0.0 if settings.serve.value else settings.wait.value
            wait = partial(self.client().wait_until_ready, limit_s, self.on_wait)
            self._guard = Guard(
                self.client(), self.folder, settings.terms, self.by, wait, self.room
            )
        return self._guard

    def _contexts(self, target: Target) -> set[int]:
        """Return the contexts that other variants of a model are wanted or were warmed with."""
        others = [one for one in self.gate.outcomes() if one.model and one.key != target.key]
        key = target.spec.model_key
        found = {one.context_length for one in others if ModelName.parse(one.model).key == key}
        # One that is being loaded has no outcome yet.
        with suppress(FileNotFoundError):
            wanted = json.loads((self.root / VARIANTS).read_text(encoding="utf-8"))
            found |= {*wanted.get(key, [])} - {dict(target.spec.options).get("num_ctx")}
        return found

    def outcome(self, target: Target) -> Outcome:
        """Return what became of a model, bringing it if no process of the run has."""
        if target.key not in self._known:
            if (known := self.gate.peek(target.key)) is None:
                self._unreported.add(target.key)
                known = self._bring_here(target)
            self._known[target.key] = known
        return self._known[target.key]

    def server(self) -> Outcome:
        """Return whether the server answers, asking it if no process of the run has.

        It is asked once: the tests after the first must not wait for it again, each.
        """
        if SERVER not in self._known:
            if self.gate.peek(SERVER) is None:
                self._unreported.add(SERVER)
            self._known[SERVER] = self.gate.once(SERVER, self._ask_server)
        return self._known[SERVER]

    def reach(self) -> str:
        """Wait until the server answers, as long as it may take; return its version.

        Raises:
            WarmupError: it does not, or is none.
        """
        settings = self.settings
        return self.client().wait_until_ready(
            settings.wait.value, self.on_wait, refused_s=settings.refused_s
        )

    def look_up(self, spec: ModelSpec) -> Outcome:
        """Return what became of a model that a test names at run time."""
        return self.outcome(target_of(spec, self.settings.listed))

    def on_wait(self, cause: str, waited_s: float) -> None:
        """Hear that the server does not answer yet."""

    def client(self) -> Client:
        """Return the client of this process, made when first needed."""
        if self._client is None:
            from pytest_ollama_warmup.ollama.client import Client

            settings = self.settings
            self._client = Client(settings.host, settings.api_key, settings.headers.value)
        return self._client

    def slot(self) -> AbstractContextManager[None]:
        """Return what a test that needs a model holds while it runs: its share of the server."""
        number = self.settings.max_parallel.value
        return nullcontext() if number is None else Slots(self.folder, number).one()

    def asked(self, target: Target) -> Target:
        """Return *target* with the suite's own warm-up request, where it has one."""
        if self.settings.warm.value not in ("auto", "prompt"):
            return target
        return target._replace(request=self._ask_request(target.spec))

    def bring(
        self,
        target: Target,
        say: Say,
        pulls: threading.Semaphore | None = None,
        begun: Callable[[], None] = lambda: None,
        room: Room | None = None,
    ) -> Outcome:
        """Make one model ready unless another process of the run has, or does now.

        One that does not load yet is only pulled; the load, when its turn comes, adds to that.
        *begun* is called when no other process can begin with it any more. With *room* one that
        does not fit is not loaded.

        Raises:
            WaitedTooLong: another process works on it, and shows no progress.
        """
        gate = self.gate
        if not target.loads:
            gate = self._present
            (self.folder / _PRESENT).mkdir(exist_ok=True)

        def work(beat: Beat) -> Outcome:
            begun()
            # In here: who comes first to a model stays the first while the server is waited for.
            # Not its own method, which may wait for the work of others.
            server = Run.server(self)
            if not server.ready:
                return _failed_like(server, target)
            from pytest_ollama_warmup.warmup.ensure import bring
            from pytest_ollama_warmup.warmup.load import resolve_warm
            from pytest_ollama_warmup.warmup.looks import LookLog

            client, terms, before = self.client(), self.settings.terms, None
            version = server.notes[0] if server.notes else ""
            terms = terms._replace(warm=resolve_warm(terms.warm, version))
            log, sent = LookLog(self.folder, self.by), clock.monotonic()
            if not target.loads:
                terms = terms._replace(warm="off")
            elif (before := self._present.peek(target.key)) is not None:
                if not before.ready:
                    return before
                terms = terms._replace(pull="never")
            found = bring(
                client,
                target if before is None else target._replace(learned=before.learned),
                terms,
                by=self.by,
                say=heard,
                beat=beat,
                pulls=pulls,
                # Else a model could have to make room, or its own variant unload it, before its
                # lease is seen to.
                loading=self.turns.of(target.key),
                room=room,
                early=self.early.get(target.key),
            )
            name = ModelName.parse(target.spec.name)
            # Nobody must take the plugin's own request for a test's.
            log.write("own", sent, keys=[name.short.lower()])
            found = found._replace(host=client.host.url)
            return found if before is None else found.after(before)

        def heard(event: Event) -> None:
            if event.phase == "queued":
                self.turns.step_aside(target.key)
            say(event)

        try:
            return gate.once(target.key, work)
        finally:
            self.turns.step_aside(target.key)

    def failed_like(self, server: Outcome, target: Target) -> Outcome:
        """Record that *target* failed because the server did."""
        return self.gate.once(target.key, lambda beat: _failed_like(server, target))

    def _bring_here(self, target: Target) -> Outcome:
        try:
            return self.bring(self.asked(target), lambda event: None)
        except WaitedTooLong as exc:
            from pytest_ollama_warmup.warmup.job import failed

            return failed(target, exc, self.by)

    def _ask_server(self, beat: Beat) -> Outcome:
        settings, error, brief, version = self.settings, "", "", ""
        try:
            if settings.problem is not None:
                error, brief = str(settings.problem), "a bad setting"
            else:
                version = self.reach()
        # Also what a suite has put in the place of httpx raises, which would end the run.
        except BaseException as exc:
            if not is_for_us(exc):
                raise
            problem = as_error(exc, settings.host)
            error, brief = str(problem), problem.brief
            if (part := replaced()) and part not in error:
                # A stand-in may also answer, as no Ollama does.
                error += f" Note: the suite, or a plugin, has replaced {part}."
        return Outcome(
            key=SERVER,
            model="",
            status="failed" if error else "ready",
            by=self.by,
            error=error,
            brief=brief,
            notes=(version,) if version else (),
            host=settings.host.url,
        )


def _failed_like(server: Outcome, target: Target) -> Outcome:
    spec = target.spec
    return server._replace(key=target.key, model=spec.name, options=spec.options, pin=spec.digest)


def is_watched(outcome: Outcome) -> bool:
    """Whether a model is loaded by the server that is asked, now or when a test needs it."""
    return bool(outcome.step("load") or outcome.left_out)
