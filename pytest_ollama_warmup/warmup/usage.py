"""Which models were used, with which context length, and how models came to be gone.

All of it is read off the looks of a run: a model whose ``expires_at`` or ``context_length`` differs
between two looks was used in between. What two looks do not prove is not concluded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ollama_warmup.warmup.looks import Look, Seen

# Another model came meanwhile: *evicted* is for one that tests use, *variant* for one with the same
# weights, *displaced* for any, which may be somebody else's and have nothing to do with it.
Cause = Literal["evicted", "displaced", "variant", "expired", "restarted", "unloaded", "gone"]

# A server notes the end of a request up to 6 ms after its client has the answer (two busy cores,
# v0.33 and v0.6.5), and in one case of twenty after the look that follows the test.
NOTED_LATE_S = 0.01
# How exactly the end of a keep-alive is known: the server's clock is read in whole seconds.
CLOCK_S = 2.0


class Inside(NamedTuple):
    """The time in which tests of one process may have used the server, and the models they need."""

    begin: float
    end: float
    tests: tuple[str, ...]
    keys: tuple[str, ...]


class Use(NamedTuple):
    """A model was used, in one of *tests*; their models are *keys*. Nobody's, without tests."""

    model: str
    digest: str
    context: int
    at: float
    tests: tuple[str, ...]
    keys: frozenset[str]


class Switch(NamedTuple):
    """A model was reloaded with another context, in one of *tests*."""

    model: str
    digest: str
    before: int
    after: int
    tests: tuple[str, ...]
    keys: frozenset[str]


class Gone(NamedTuple):
    """A model was no longer there at *at*; *by* are the models that came in the same interval.

    *crowd* is what would have been in memory had it stayed.
    """

    model: str
    digest: str
    context: int
    at: float
    cause: Cause
    tests: tuple[str, ...]
    by: tuple[str, ...] = ()
    crowd: frozenset[str] = frozenset()


@dataclass(slots=True)
class Usage:
    """What the looks of a run prove; *kept* is how many models were in memory at most.

    *together* are the largest sets of models that were in memory at the same time.
    """

    uses: list[Use] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    kept: int = 0
    together: list[frozenset[str]] = field(default_factory=list)

    @property
    def crowds(self) -> list[frozenset[str]]:
        """The sets of models that did not fit into memory."""
        return [gone.crowd for gone in self.gone if gone.cause == "evicted"]

    def fits(self, names: frozenset[str]) -> bool:
        """Whether *names* were seen in memory at the same time."""
        return any(names <= models for models in self.together)


def usage_of(looks: list[Look]) -> Usage:
    """Line up the looks of all processes, and return what changed from one to the next."""
    return _Reading(looks).read()


class _Reading:
    def __init__(self, looks: list[Look]) -> None:
        self._looks = looks
        self._own = [look for look in looks if look.when == "own"]
        self._lost = [look for look in looks if look.lost]
        self._usage = Usage()
        self._missing: dict[str, Gone] = {}

    def read(self) -> Usage:
        """Return what the looks prove."""
        before: Look | None = None
        sweep = _Sweep(_insides(self._looks))
        for look in _in_order(self._looks):
            assert look.loaded is not None
            self._note_room(frozenset(look.loaded))
            if before is not None:
                self._compare(before, look, *sweep.between(before.sent, look.got))
            before = look
        usage = self._usage
        # What was together at another time did not have to make room: it was unloaded.
        usage.gone = [
            gone._replace(cause="gone")
            if gone.cause == "evicted" and usage.fits(gone.crowd)
            else gone
            for gone in sorted([*usage.gone, *self._missing.values()], key=lambda gone: gone.at)
        ]
        return usage

    def _compare(self, before: Look, after: Look, inside: list[Inside], just: list[Inside]) -> None:
        assert before.loaded is not None
        assert after.loaded is not None
        tests, keys = _tests(inside), _keys(inside)
        came = sorted(after.loaded.keys() - before.loaded.keys())
        self._note_late_comers(before, after, tests, tuple(came))
        for name, was in before.loaded.items():
            if name not in after.loaded:
                self._missing[name] = self._gone(name, was, before, after, tests, tuple(came))
        for name, now in after.loaded.items():
            old = before.loaded.get(name)
            if (missing := self._missing.pop(name, None)) is not None:
                old = self._came_back(missing, now, tests, keys)
            # What a server notes late is the end of a request, not the load before it.
            late = old is not None and old.context == now.context
            if (old is not None and old[:3] == now[:3]) or self._is_own(name, before, after, late):
                continue
            if old is not None and old.context != now.context and old.context and now.context:
                switch = Switch(name, now.digest, old.context, now.context, tests, keys)
                self._usage.switches.append(switch)
            users = inside or (just if late else [])
            use = Use(name, now.digest, now.context, after.got, _tests(users), _keys(users))
            self._usage.uses.append(use)

    def _note_late_comers(
        self, before: Look, after: Look, tests: tuple[str, ...], came: tuple[str, ...]
    ) -> None:
        """See what had to make room already when the last look was taken.

        The server unloads one model, loads another, and only then lists it.
        """
        assert before.loaded is not None
        assert after.loaded is not None
        for name, gone in self._missing.items():
            just_gone = gone.at == before.got and gone.cause in ("gone", "unloaded") and not gone.by
            by = tuple(other for other in came if other != name)
            if just_gone and by and name not in after.loaded and {*gone.tests} & {*tests}:
                crowd = frozenset([name, *before.loaded, *by])
                self._missing[name] = gone._replace(cause="evicted", by=by, crowd=crowd)

    def _came_back(
        self, missing: Gone, now: Seen, tests: tuple[str, ...], keys: frozenset[str]
    ) -> Seen | None:
        """Return what a model was before it was *missing*, where it was only being reloaded."""
        if missing.cause == "gone" and missing.tests and missing.context != now.context:
            # The list lacks a model that loads: with another context, that was a reload.
            return now._replace(context=missing.context, expires="")
        self._usage.gone.append(missing)
        return None

    def _gone(
        self,
        name: str,
        was: Seen,
        before: Look,
        after: Look,
        tests: tuple[str, ...],
        came: tuple[str, ...],
    ) -> Gone:
        assert after.loaded is not None
        stayed = after.loaded.keys() - set(came)
        cause: Cause = "gone"
        if any(before.sent <= look.got and look.sent <= after.got for look in self._lost):
            cause = "restarted"
        elif was.ends is not None and after.got >= was.ends - CLOCK_S:
            # Where another model came too, it may have been either.
            cause = "gone" if came else "expired"
        elif came:
            cause = "evicted"
        elif stayed and len(tests) == 1:
            # A server that was restarted keeps none.
            cause = "unloaded"
        crowd = frozenset([name, *after.loaded])
        return Gone(name, was.digest, was.context, after.got, cause, tests, came, crowd)

    def _is_own(self, name: str, before: Look, after: Look, late: bool) -> bool:
        """Whether a request of the plugin for *name* may have changed it between two looks.

        *late* is whether the server may have noted its end after we have.
        """
        for look in self._own:
            # For a test which it was made before, a use that follows is its own.
            margin_s = NOTED_LATE_S if late and not look.tests else 0.0
            overlaps = look.sent <= after.got and look.got >= before.sent - margin_s
            if overlaps and name.lower() in look.keys:
                return True
        return False

    def _note_room(self, names: frozenset[str]) -> None:
        usage = self._usage
        usage.kept = max(usage.kept, len(names))
        if names and not any(names <= models for models in usage.together):
            usage.together = [models for models in usage.together if not models <= names] + [names]


def _in_order(looks: Iterable[Look]) -> Iterator[Look]:
    """Yield the looks of which is known in which order the server answered them.

    Of two that overlap it is not, unless the first one saw what had been seen before. Else the last
    look of a run, which shows what its last test did, would be left out for one that shows nothing.
    """
    over, before = float("-inf"), None
    for look in looks:
        if look.loaded is not None and look.sent >= over:
            seen = {name: model[:3] for name, model in look.loaded.items()}
            if seen != before:
                over, before = look.got, seen
            yield look


def _insides(looks: Iterable[Look]) -> list[Inside]:
    """Return when tests may have used the server, in the order in which they began."""
    insides: list[Inside] = []
    open_: dict[str, Look] = {}
    last: dict[str, float] = {}
    for look in looks:
        begun = open_.pop(look.by, None) if look.when in ("before", "after") else None
        if begun is not None:
            insides.append(Inside(begun.got, look.sent, begun.tests, begun.keys))
        if look.when == "before":
            open_[look.by] = look
        elif look.when == "between" and look.tests:
            begin = last.get(look.by, float("-inf"))
            insides.append(Inside(begin, look.sent, look.tests, look.keys))
        if look.when != "own":
            last[look.by] = look.got
    # A process that was killed: nobody knows when its test ended.
    insides += [
        Inside(opening.got, float("inf"), opening.tests, opening.keys) for opening in open_.values()
    ]
    return sorted(insides)


class _Sweep:
    """Which tests were inside between two points in time, for intervals that move forward."""

    def __init__(self, insides: list[Inside]) -> None:
        self._later, self._near = insides[::-1], list[Inside]()

    def between(self, begin: float, end: float) -> tuple[list[Inside], list[Inside]]:
        """Return them, and where all of the interval is just after the end of one, that one."""
        while self._later and self._later[-1].begin < end:
            self._near.append(self._later.pop())
        self._near = [span for span in self._near if span.end > begin - NOTED_LATE_S]
        inside = [span for span in self._near if span.end > begin]
        just = [span for span in self._near if span.end <= begin and end - span.end < NOTED_LATE_S]
        return inside, sorted(just, key=lambda span: span.end)[-1:]


def _tests(insides: Iterable[Inside]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(test for span in insides for test in span.tests))


def _keys(insides: Iterable[Inside]) -> frozenset[str]:
    return frozenset(key for span in insides for key in span.keys)


def uses_by_key(
    usage: Usage, keys_of: Callable[[str, str], frozenset[str]]
) -> dict[str, list[Use]]:
    """Return the uses by tests of each model of the run, by its key, in the order of time.

    *keys_of* returns the keys that a model in memory may stand for: several where tests want it
    with different options. A use that may belong to several of them is left out.
    """
    uses: dict[str, list[Use]] = {}
    for use in usage.uses:
        keys = keys_of(use.model, use.digest)
        wanted = keys & use.keys if len(keys) > 1 else keys
        if use.tests and len(wanted) == 1:
            (key,) = wanted
            uses.setdefault(key, []).append(use)
    return uses


def unlisted(usage: Usage, keys_of: Callable[[str, str], frozenset[str]]) -> dict[str, list[str]]:
    """Return the tests that certainly used each model which the run does not know.

    None of them where several tests ran at a time. A model that was used while no test ran is
    somebody else's: nothing is said of it.
    """
    tests_by_model: dict[str, list[str]] = {}
    others: set[str] = set()
    for use in usage.uses:
        if keys_of(use.model, use.digest):
            continue
        if not use.tests:
            others.add(use.model)
            continue
        tests = tests_by_model.setdefault(use.model, [])
        if len(use.tests) == 1 and use.tests[0] not in tests:
            tests.append(use.tests[0])
    return {name: tests for name, tests in tests_by_model.items() if name not in others}
