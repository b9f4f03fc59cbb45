"""May this test run? The outcomes of its models, then the guard, as a verdict."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import LoadFailed, NoModelNamed, ServerUnreachable, words_of
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.replaced_httpx import is_for_us, suppressing
from pytest_ollama_warmup.warmup.locks import held
from pytest_ollama_warmup.warmup.on_unavailable import Verdict, decide
from pytest_ollama_warmup.warmup.outcome import NOTICEABLE_S
from pytest_ollama_warmup.warmup.plan import resolve, target_of
from pytest_ollama_warmup.warmup.room_in_memory import make_room

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ollama_warmup.config.model_specs import ModelSpec
    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target, Want
    from pytest_ollama_warmup.warmup.warmer import Warmer, Warmers


def what_is_lost(exc: ServerUnreachable | LoadFailed) -> str:
    """Return the URL of the server that is lost, or what is wrong with the model.

    One request to a server that has ended meets a lost connection, maybe in a load, and the next
    one a refusal.
    """
    for error in (exc, exc.__cause__):
        # A load that takes too long is a matter of its model.
        if isinstance(error, ServerUnreachable) and (error is exc or not error.timed_out):
            return error.url
    return str(exc)


class Check:
    """One process's answers before and after each test that needs a model.

    *wait_for* waits until a model (None for the server) of the run's own host is no longer being
    prepared elsewhere; *between_tests* says whether no test is running meanwhile.
    """

    def __init__(
        self,
        warmers: Warmers,
        wait_for: Callable[[Target | None, bool], None] = lambda target, between_tests: None,
    ) -> None:
        self._warmers, self._wait_for = warmers, wait_for
        self._directory, self._by = warmers.directory, warmers.process.name
        # What was looked for before the test that runs now, and where.
        self._looked: tuple[Warmer, list[tuple[Target, Outcome]]] | None = None
        self._unmarked: list[str] = []
        self._waits: dict[str, float] = {}
        self._lost: dict[str, tuple[str, list[str]]] = {}
        self._turn: set[str] = set()

    def verdict(self, want: Want, warmer: Warmer) -> Verdict | None:
        """Return why a test that wants *want* cannot run; None when all is ready."""
        try:
            return self._verdict(want, _targets(want, warmer), warmer, between_tests=False)
        except NoModelNamed as exc:
            return Verdict("fail", str(exc))

    def before(self, want: Want, warmer: Warmer) -> Verdict | None:
        """Return the same just before the test, and see that what is ready is still warm.

        Raises:
            CannotLook: all was ready; whether it still is cannot be asked.
        """
        self._looked = None
        settings = warmer.settings
        try:
            targets = _targets(want, warmer)
        except NoModelNamed as exc:
            return Verdict("fail", str(exc))
        if settings.reorders and self._directory.ending.exists():
            # Nothing is loaded for a test that only runs because pytest-xdist cannot take it back.
            return Verdict("skip", "skipped: the run is stopping early")
        begin = clock.monotonic()
        if settings.group_by_model.value:
            self._make_room({target.key for target in targets}, warmer)
        verdict = self._verdict(want, targets, warmer, between_tests=True)
        if (waited_s := clock.monotonic() - begin) >= NOTICEABLE_S:
            self._waits[want.test] = waited_s
        if verdict is not None:
            return verdict
        ready = [(target, warmer.outcome(target)) for target in targets]
        # What runs elsewhere, or is not to be warmed up, cannot be found cold.
        watched = [(target, outcome) for target, outcome in ready if outcome.is_watched]
        if (watched or not ready) and settings.warm.value != "off":
            self._look_before(watched, want.test, warmer)
        return None

    def inside(self) -> AbstractContextManager[None]:
        """Return what is held while the test runs before which was just looked.

        Other workers see by it that the test may make the server reload its models.
        """
        if self._looked is None:
            return nullcontext()
        warmer, watched = self._looked
        return warmer.guard.inside(watched)

    def after(self, test: str) -> None:
        """See what *test* used, if it was looked before it; never raises."""
        looked, self._looked = self._looked, None
        if looked is not None:
            warmer, watched = looked
            with suppressing():
                warmer.guard.after(watched, test, warmer.contexts)

    def pass_by(self, test: str) -> None:
        """Note that *test* runs, which says nothing of models, and may use some all the same."""
        # Of two or more nobody knows which it was: the others need not be named.
        if len(self._unmarked) < 2:
            self._unmarked.append(test)

    def at_end(self) -> None:
        """See what tests without a mark have used since the last look; never raises."""
        if self._unmarked and self._directory.mixed.exists() and not self._lost:
            self._warmers.own.look_between(self._taken_unmarked())

    def write_notes(self) -> None:
        """Leave to the controller what waited in this process, and what was lost."""
        self._directory.leave(self._by, "waits", self._waits)
        self._directory.leave(self._by, "lost", self._lost)

    def _verdict(
        self, want: Want, targets: list[Target], warmer: Warmer, *, between_tests: bool
    ) -> Verdict | None:
        settings = warmer.settings
        problem, given_by = None, settings.listed.given_by
        waits = warmer is self._warmers.own
        for target in targets:
            if waits:
                self._wait_for(target, between_tests)
            outcome = warmer.outcome(target)
            able = outcome.for_tests_that_need(target.spec.capabilities, target.origin)
            if not able.ready:
                # A model that is there, and cannot do what a test asks, is no missing one.
                problem, given_by = able, "default" if outcome.ready else target.given_by
                break
        if not targets:
            if waits:
                self._wait_for(None, between_tests)
            problem = warmer.server()
        if problem is None or problem.ready:
            return None
        policy = decide(settings.on_unavailable.value, want.on_unavailable, given_by, settings.ci)
        if problem.key in warmer.unreported:
            return Verdict(policy, problem.error)
        of_model = f"{problem.title}: " if problem.model else ""
        # The section says what to do: who sees a skip in an IDE or by -rs sees only this.
        section = f" [{problem.anchor}]" if problem.anchor else ""
        return Verdict(policy, f"{of_model}{problem.brief}{section}")

    def _look_before(
        self, watched: list[tuple[Target, Outcome]], test: str, warmer: Warmer
    ) -> None:
        from pytest_ollama_warmup.warmup.still_loaded import CannotLook

        self._looked = (warmer, watched)
        unmarked = self._taken_unmarked()
        try:
            warmer.guard.before(
                watched, test, warmer.contexts, lambda: self._may_load(warmer), unmarked
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
            raise CannotLook(f"{type(exc).__name__}: {words_of(exc)}") from exc

    def _taken_unmarked(self) -> list[str]:
        tests, self._unmarked = self._unmarked, []
        return tests

    def _may_load(self, warmer: Warmer) -> bool:
        """Whether what is gone may be loaded before a test.

        Not where several workers use more models than the server keeps: a load for the next test of
        one would take the model of another, which has just been seen to and not been used yet.
        """
        grouped = warmer.settings.group_by_model.value
        return grouped or self._by == "main" or not warmer.room.is_short

    def _make_room(self, keys: set[str], warmer: Warmer) -> None:
        """Where another set of models has its turn now: unload what would not go by itself.

        A server that is full takes whichever it likes, also one of the same set.
        """
        if keys == self._turn:
            return
        self._turn = keys
        with suppressing():
            groups = [set(group) for group in self._directory.groups.read()]
            later = groups[groups.index(keys) + 1 :]
            directory = warmer.directory
            loaded = [
                outcome for outcome in directory.outcomes() if outcome.step("load") is not None
            ]
            with held(directory.room_lock, "room for models", directory.limit_s):
                make_room(warmer.client(), keys, later, loaded)


def outcome_at_run_time(spec: ModelSpec, warmer: Warmer) -> Outcome:
    """Return what became of a model that a test names at run time."""
    return warmer.outcome(target_on(spec, warmer.settings))


def _targets(want: Want, warmer: Warmer) -> list[Target]:
    settings = warmer.settings
    return [target_on(spec, settings) for spec in resolve(want, settings.listed)]


def target_on(spec: ModelSpec, settings: Settings) -> Target:
    """Return what is to be made ready for *spec* on the host of *settings*."""
    return target_of(spec, settings.listed)._replace(host=settings.host.url)
