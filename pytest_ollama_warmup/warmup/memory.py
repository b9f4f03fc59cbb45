"""What a run has seen of one server's memory: whose models were used, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.responses import UNKNOWN, ModelInfo
from pytest_ollama_warmup.warmup.looks import read_looks
from pytest_ollama_warmup.warmup.still_loaded import all_known
from pytest_ollama_warmup.warmup.usage import Usage, unlisted, usage_of, uses_by_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_ollama_warmup.warmup.outcome import Known, Outcome, Reload
    from pytest_ollama_warmup.warmup.run_directory import HostDirectory
    from pytest_ollama_warmup.warmup.usage import Gone, Switch, Use


@dataclass
class Memory:
    """The memory of one server; *host* is its URL, empty where the run has only one.

    *known* is what the guard knows of each model by its key, *outcomes* are the run's models.
    *others* is what the server says of models that came in the place of another, by name.
    """

    host: str = ""
    usage: Usage = field(default_factory=Usage)
    known: dict[str, Known] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    others: dict[str, ModelInfo] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        directory: HostDirectory,
        outcomes: Iterable[Outcome],
        host: str = "",
        show: Callable[[str], ModelInfo | None] = lambda name: None,
    ) -> Memory:
        """Return what the processes of a run have left in *directory*.

        *show* asks the server what it knows of a model.
        """
        ready = {outcome.key: outcome for outcome in outcomes if outcome.ready and outcome.model}
        entries = {entry.key: entry for entry in all_known(directory)}
        # What does not say what it needs may have used any of them.
        keys = tuple(ready)
        looks = [
            look._replace(keys=keys) if look.when == "between" else look
            for look in read_looks(directory)
        ]
        memory = cls(host, usage_of(looks), entries, ready)
        memory.judge_gone(show)
        return memory

    def judge_gone(self, show: Callable[[str], ModelInfo | None]) -> None:
        """See for which models others were gone: of the same weights, of tests, or of nobody knows.

        Two looks show that one was gone and another one had come. That the one had to go for the
        other is concluded only where that is a model which tests use.
        """
        displaced = [gone for gone in self.usage.gone if gone.by and gone.cause != "restarted"]
        for name in dict.fromkeys(name for gone in displaced for name in (gone.model, *gone.by)):
            if self.info(name) is UNKNOWN and (info := show(name)) is not None:
                self.others[name] = info
        self.usage.gone = [self._judged(gone) for gone in self.usage.gone]

    def _judged(self, gone: Gone) -> Gone:
        weights = self.info(gone.model).weights
        by = tuple(name for name in gone.by if weights and weights == self.info(name).weights)
        if by and gone.cause != "restarted":
            return gone._replace(cause="variant", by=by)
        if gone.cause == "evicted" and not any(self._is_used(name, gone.at) for name in gone.by):
            return gone._replace(cause="displaced")
        return gone

    def _is_used(self, name: str, at: float) -> bool:
        """Whether tests use a model, as far as was seen at other times than *at*."""
        uses = [use for use in self.usage.uses if use.model == name]
        if self.keys_of(name, ""):
            return True
        certain = any(len(use.tests) == 1 and use.at != at for use in uses)
        return certain and all(use.tests for use in uses)

    def info(self, name: str) -> ModelInfo:
        """Return what is known of a model in memory."""
        for outcome in self.outcomes.values():
            if outcome.weights and _same_name(name, outcome.model):
                return ModelInfo(outcome.capabilities, "", outcome.weights, outcome.parameters)
        return self.others.get(name, UNKNOWN)

    def is_of_tests(self, name: str) -> bool:
        """Whether a model is one of the run, or was used while tests ran, and at no other time."""
        uses = [use for use in self.usage.uses if use.model == name]
        return bool(self.keys_of(name, "")) or (bool(uses) and all(use.tests for use in uses))

    def keys_of(self, name: str, digest: str) -> frozenset[str]:
        """Return the keys that a model in memory may stand for; none where the run knows it not."""
        return frozenset(
            key
            for key, outcome in self.outcomes.items()
            if _same_name(name, outcome.model)
            or (digest and digest == outcome.digest)
            or (key in self.known and name in self.known[key].beside)
        )

    @cached_property
    def uses(self) -> dict[str, list[Use]]:
        """The uses by tests of each model, by its key, in the order of time."""
        return uses_by_key(self.usage, self.keys_of)

    @property
    def unlisted(self) -> dict[str, list[str]]:
        """The tests that used each model which the run does not know; none where it is unclear."""
        return unlisted(self.usage, self.keys_of)

    def switches(self, key: str) -> list[Switch]:
        """Return the reloads of a model with another context by tests."""
        switches = [
            switch
            for switch in self.usage.switches
            if key in self.keys_of(switch.model, switch.digest)
        ]
        return [switch for switch in switches if switch.tests]

    def comebacks(self, key: str) -> list[tuple[Gone | None, Reload | None]]:
        """Return how a model was gone each time, and the load that followed.

        That is None where it was a test's. A model that did not come back cost nothing.
        """
        entry = self.known.get(key)
        reloads = list(entry.reloads) if entry else []
        comebacks: list[tuple[Gone | None, Reload | None]] = []
        events = [
            event for event in self.usage.gone if key in self.keys_of(event.model, event.digest)
        ]
        for gone, following in zip_longest(events, events[1:]):
            until = following.at if following else float("inf")
            reload = next((load for load in reloads if gone.at <= load.at < until), None)
            if reload is not None:
                reloads.remove(reload)
            uses = self.uses.get(key, ())
            if reload or any(gone.at < use.at <= until for use in uses):
                comebacks.append((gone, reload))
        return comebacks + [(None, load) for load in reloads]

    @property
    def number_needed(self) -> int:
        """How many models the tests need, as they say or were seen to."""
        seen = [name for name, tests in self.unlisted.items() if tests]
        names = [*(outcome.model for outcome in self.outcomes.values()), *seen]
        # Those with the same weights have one place.
        return len({self.info(name).weights or name.lower() for name in names})


def _same_name(name: str, other: str) -> bool:
    try:
        return ModelName.parse(name).key == ModelName.parse(other).key
    except ValueError:
        return False
