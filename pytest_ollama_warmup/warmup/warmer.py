"""One host as one process sees it: what is recorded of its models, or done for them now."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ollama_warmup.errors import CannotAsk, WaitedTooLong
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.replaced_httpx import as_error, is_for_us, replaced, suppressing
from pytest_ollama_warmup.text import seconds
from pytest_ollama_warmup.warmup.job import Work, failed
from pytest_ollama_warmup.warmup.locks import Slots
from pytest_ollama_warmup.warmup.looks import LookLog
from pytest_ollama_warmup.warmup.outcome import Outcome, Step
from pytest_ollama_warmup.warmup.plan import SERVER
from pytest_ollama_warmup.warmup.room_in_memory import Room
from pytest_ollama_warmup.warmup.turns import Turns

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.early import EarlyLoad
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.responses import LoadedModel, ModelInfo
    from pytest_ollama_warmup.warmup.job import Event, Say
    from pytest_ollama_warmup.warmup.locks import Heartbeat
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.run_directory import RunDirectory, Stage
    from pytest_ollama_warmup.warmup.still_loaded import Guard

SAY_WAITING_AFTER_S = 2.0
# How long the server may take to describe a model when the run is over.
SHOW_S = 5.0


class Process(NamedTuple):
    """The process that warmers work for: its *name* in records, and what it adds to the work.

    *ask_request* returns the suite's own warm-up request for a model, None where it has none.
    *reach* waits for the server, in another way than to ask it. What is waited for is given to
    *say_waiting*, another text every *every_s* seconds. *early* are the loads that were asked for
    before, by the keys of their models.
    """

    name: str = "main"
    ask_request: Callable[[ModelSpec], Mapping[str, Any] | None] = lambda spec: None
    reach: Callable[[Warmer], str] | None = None
    say_waiting: Callable[[str], None] = lambda text: None
    every_s: Callable[[], float] = lambda: 10.0
    early: Mapping[str, EarlyLoad] = {}


class Warmer:
    """Makes the models of one host ready, each once in a run, whichever process comes first.

    httpx is imported only by the process that has to ask the server.
    """

    def __init__(self, settings: Settings, directory: RunDirectory, process: Process) -> None:
        self.settings, self.run, self._process = settings, directory, process
        self.directory = directory.host(settings.host.url)
        self.by = process.name
        self.turns, self.room = Turns(), Room(self.directory)
        self.unreported: set[str] = set()
        """Failures that the controller cannot have reported before the tests, by key."""
        self._client: Client | None = None
        self._guard: Guard | None = None
        self._outcomes: dict[str, Outcome] = {}
        self.say_waiting = process.say_waiting
        """Hears what is waited for, from any thread."""
        self._describes = True

    @property
    def host(self) -> Host:
        """The address of the server."""
        return self.settings.host

    def close(self) -> None:
        """Cut what is still under way, so that the server stops it too."""
        if self._client is not None:
            self._client.abort()
            with suppressing():
                self._client.close()

    def client(self) -> Client:
        """Return the client of this process, made when first needed."""
        if self._client is None:
            from pytest_ollama_warmup.ollama.client import Client

            settings = self.settings
            self._client = Client(settings.host, settings.api_key, settings.headers.value)
        return self._client

    # The server

    def server(self) -> Outcome:
        """Return whether the server answers, asking it if no process of the run has.

        It is asked once: the tests after the first must not wait for it again, each.
        """
        if SERVER not in self._outcomes:
            if self.directory.server is None:
                self.unreported.add(SERVER)
            ask = self.ask_server
            self._outcomes[SERVER] = self.directory.once("server", SERVER, lambda heartbeat: ask())
        return self._outcomes[SERVER]

    def record_server(self, outcome: Outcome) -> None:
        """Record for all processes of the run whether the server answers, if none has."""
        self.directory.once("server", SERVER, lambda heartbeat: outcome)

    def ask_server(self) -> Outcome:
        """Return whether the server answers, waiting as long as it may take."""
        settings, reach, start = self.settings, self._process.reach, clock.time()
        outcome = Outcome(key=SERVER, model="", status="ready", by=self.by, host=settings.host.url)
        if settings.problem is not None:
            return outcome.failing(settings.problem)._replace(brief="a bad setting")
        try:
            version = self.wait_until_ready() if reach is None else reach(self)
            outcome = outcome._replace(notes=(version,) if version else ())
        # Also what a suite has put in the place of httpx raises, which would end the run.
        except BaseException as exc:
            if not is_for_us(exc):
                raise
            problem = as_error(exc, settings.host)
            outcome = outcome.failing(problem)
            if (part := replaced()) and not isinstance(problem, CannotAsk):
                # A stand-in may also answer, as no Ollama does.
                note = f" Note: the suite, or a plugin, has replaced {part}."
                outcome = outcome._replace(error=outcome.error + note)
        return outcome._replace(aside=(Step("wait", start, clock.time() - start),))

    def wait_until_ready(self) -> str:
        """Wait until the server answers, as long as it may take; return its version.

        Raises:
            WarmupError: it does not, or is none.
        """
        settings = self.settings
        return self.client().wait_until_ready(
            settings.wait.value, self.on_wait, refused_s=settings.refused_s
        )

    def on_wait(self, cause: str, waited_s: float) -> None:
        """Say what is waited for, when that takes longer than a moment, and now and then again."""
        if text := waiting(self.settings, cause, waited_s, self._process.every_s()):
            self.say_waiting(text)

    # Its models

    def outcome(self, target: Target) -> Outcome:
        """Return what became of a model, making it ready if no process of the run has."""
        if target.key not in self._outcomes:
            outcome = self.directory.outcome_of("load", target.key)
            if outcome is None:
                self.unreported.add(target.key)
                try:
                    outcome = self.ensure(self.asked(target), "load", lambda event: None)
                except WaitedTooLong as exc:
                    outcome = failed(target, exc, self.by)
            self._outcomes[target.key] = outcome
        return self._outcomes[target.key]

    def asked(self, target: Target) -> Target:
        """Return *target* with the suite's own warm-up request, where it has one."""
        if self.settings.warm.value not in ("auto", "prompt"):
            return target
        return target._replace(request=self._process.ask_request(target.spec))

    def ensure(
        self,
        target: Target,
        stage: Stage,
        say: Say,
        *,
        pulls: threading.Semaphore | None = None,
        begun: Callable[[], None] = lambda: None,
        with_room: bool = False,
    ) -> Outcome:
        """Pull or load one model unless another process of the run has, or does now.

        *begun* is called when no other process can begin with it any more. *with_room* is whether a
        model is left out that does not fit among others.

        Raises:
            WaitedTooLong: another process works on it, and shows no progress.
        """

        def load(heartbeat: Heartbeat) -> Outcome:
            begun()
            # In here: who comes first to a model stays the first while it is pulled.
            pulled = self._pull(target, heard, heartbeat, pulls, lambda: None)
            return (
                self._load(target, pulled, heard, heartbeat, with_room) if pulled.ready else pulled
            )

        def heard(event: Event) -> None:
            if event.phase == "queued":
                self.turns.step_aside(target.key)
            say(event)

        try:
            if stage == "pull":
                return self._pull(target, heard, lambda: None, pulls, begun)
            return self.directory.once("load", target.key, load)
        finally:
            self.turns.step_aside(target.key)

    def _pull(
        self,
        target: Target,
        say: Say,
        heartbeat: Heartbeat,
        pulls: threading.Semaphore | None,
        begun: Callable[[], None],
    ) -> Outcome:
        def pull(own_heartbeat: Heartbeat) -> Outcome:
            def both() -> None:
                own_heartbeat()
                heartbeat()

            begun()
            # Who comes first to a model stays the first while the server is waited for.
            server = self.server()
            if not server.ready:
                return _failed_like(server, target)
            from pytest_ollama_warmup.warmup.ensure import ensure_pulled

            return self._at_host(ensure_pulled(self._work(target, say, both, pulls), self.by))

        # Another process may pull it: whoever waits for the load here must not give up meanwhile.
        return self.directory.once("pull", target.key, pull, on_wait=heartbeat)

    def _load(
        self, target: Target, pulled: Outcome, say: Say, heartbeat: Heartbeat, with_room: bool
    ) -> Outcome:
        from pytest_ollama_warmup.warmup.ensure import ensure_warm

        log, sent = LookLog(self.directory, self.by), clock.monotonic()
        work = self._work(target, say, heartbeat, None)
        work.room = self.room if with_room else None
        work.early = self._process.early.get(target.key)
        # One at a time: else a model could have to make room, or its own variant unload it, before
        # its keep-alive is seen to.
        outcome = ensure_warm(work, pulled, self.by, self.turns.of(target.key))
        # Nobody must take the plugin's own request for a test's.
        log.write("own", sent, keys=[ModelName.parse(target.spec.name).short.lower()])
        return self._at_host(outcome)

    def _work(
        self, target: Target, say: Say, heartbeat: Heartbeat, pulls: threading.Semaphore | None
    ) -> Work:
        import threading

        from pytest_ollama_warmup.warmup.load import resolve_warm

        server, terms = self.server(), self.settings.terms
        version = server.notes[0] if server.notes else ""
        terms = terms._replace(warm=resolve_warm(terms.warm, version))
        return Work(self.client(), target, terms, say, heartbeat, pulls or threading.Semaphore(1))

    def _at_host(self, outcome: Outcome) -> Outcome:
        return outcome._replace(host=self.host.url)

    def failed_like(self, server: Outcome, target: Target) -> Outcome:
        """Record that *target* failed because the server did."""
        return self.directory.once(
            "load", target.key, lambda heartbeat: _failed_like(server, target)
        )

    def slot(self) -> AbstractContextManager[None]:
        """Return what a test that needs a model holds while it runs: its share of the server."""
        number = self.settings.max_parallel.value
        return nullcontext() if number is None else Slots(self.directory.path, number).one()

    # Its memory

    @property
    def guard(self) -> Guard:
        """What looks before and after tests, made when first needed."""
        if self._guard is None:
            from pytest_ollama_warmup.warmup.still_loaded import Guard

            settings = self.settings
            # Nobody starts a server of our own again.
            limit_s = 0.0 if settings.serve.value else settings.wait.value
            wait = partial(self.client().wait_until_ready, limit_s, self.on_wait)
            self._guard = Guard(
                self.client(), self.directory, settings.terms, self.by, wait, self.room
            )
        return self._guard

    def contexts(self, target: Target) -> set[int]:
        """Return the contexts that other variants of a model are wanted or were warmed with."""
        others = [outcome for outcome in self.directory.outcomes() if outcome.key != target.key]
        key = target.spec.model_key
        contexts = {
            outcome.context_length
            for outcome in others
            if ModelName.parse(outcome.model).key == key
        }
        # One that is being loaded has no outcome yet.
        wanted = {*self.run.variants.read({}).get(key, [])}
        return contexts | (wanted - {dict(target.spec.options).get("num_ctx")})

    def look_between(self, tests: Iterable[str] = ()) -> None:
        """Write down what is in memory before the first test, or after *tests*; never raises."""
        sent = clock.monotonic()
        with suppressing():
            loaded = self._in_memory()
            LookLog(self.directory, self.by).write("between", sent, tests=tests, loaded=loaded)

    def _in_memory(self) -> list[LoadedModel]:
        if self._client is not None:
            return self._client.loaded_models()
        # A worker that has run no test with a mark has not imported httpx, which takes 40 ms.
        from pytest_ollama_warmup.ollama.plain_look import loaded

        settings = self.settings
        return loaded(settings.host, settings.api_key, settings.headers.value, self.client)

    def describe(self, name: str) -> ModelInfo | None:
        """Return what the server says of a model at the end of the run; None where it does not."""
        if not self._describes:
            return None
        try:
            return self.client().show(name, limit_s=SHOW_S)
        except Exception:
            LOG.debug("what the server knows of %s cannot be read", name, exc_info=True)
            # Each further question might take as long.
            self._describes = False
            return None


class Warmers:
    """The warmers of one process, one for each host, each made when it is first needed.

    *settings* are asked for when one is made: a suite's hook may choose the host.
    """

    def __init__(
        self, settings: Callable[[], Settings], directory: RunDirectory, process: Process
    ) -> None:
        self._settings, self.directory, self.process = settings, directory, process
        self._made: dict[str, Warmer] = {}

    @property
    def own(self) -> Warmer:
        """The warmer of the host that this process uses."""
        return self.at(self._settings().host)

    def at(self, host: Host) -> Warmer:
        """Return the warmer of *host*, which a suite may give to some of its tests."""
        if host.address not in self._made:
            settings = self._settings()
            ours = settings.host
            if (host.url, host.login) != (ours.url, ours.login):
                settings = settings.on(host)
            self._made[host.address] = Warmer(settings, self.directory, self.process)
        return self._made[host.address]

    def __iter__(self) -> Iterator[Warmer]:
        return iter([*self._made.values()])

    def close(self) -> None:
        """Cut what is still under way on any host."""
        for warmer in self:
            warmer.close()


def waiting(settings: Settings, cause: str, waited_s: float, every_s: float) -> str:
    """Say what is waited for, another text every *every_s* seconds.

    Empty before that is worth a word, and when it is over.
    """
    limit_s = settings.wait.value
    if not SAY_WAITING_AFTER_S <= waited_s < limit_s:
        return ""
    so_far_s = waited_s // every_s * every_s
    so_far = f"{so_far_s:.0f} s of" if so_far_s else "up to"
    return f"waiting for {settings.host.url} ({cause}), {so_far} {seconds(limit_s)}"


def _failed_like(server: Outcome, target: Target) -> Outcome:
    spec = target.spec
    return server._replace(
        key=target.key,
        model=spec.name,
        options=spec.options,
        pin=spec.digest,
        origin=target.origin,
    )
