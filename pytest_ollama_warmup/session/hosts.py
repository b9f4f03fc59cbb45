"""The hosts that a run uses: one, or those of several that answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.session.address import (
    write_host,
    write_places,
)
from pytest_ollama_warmup.session.state import (
    number_of_workers,
    settings_of,
)
from pytest_ollama_warmup.text import count
from pytest_ollama_warmup.warmup.hosts import meet, moved, share_out

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_ollama_warmup.report.progress import Screen
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.warmer import Warmer, Warmers


class Hosts:
    """The hosts that this run prepares models on, met once."""

    def __init__(self, config: pytest.Config, warmers: Warmers, screen: Screen) -> None:
        self._config, self._warmers, self._screen = config, warmers, screen
        self._met: dict[str, Warmer] = {}
        self.down: list[Outcome] = []
        """Those of several that do not answer, while others do."""
        self.several = False
        """Whether models are prepared for workers that are spread over hosts."""

    @property
    def in_use(self) -> list[Warmer]:
        """The warmers of the hosts: one at least."""
        return [*self._met.values()] or [self._warmers.own]

    def warmer_of(self, target: Target) -> Warmer:
        """Return who makes *target* ready."""
        return self._met[target.host]

    def on_each(self, targets: Iterable[Target]) -> list[Target]:
        """Return *targets* for each host of the run."""
        return [
            target._replace(host=warmer.host.url) for target in targets for warmer in self.in_use
        ]

    def meet(self, *, ends: bool) -> Outcome | None:
        """Ask several hosts, once, and go on with those that answer.

        *ends* is whether the run ends where one does not; its outcome is returned then.
        """
        settings, workers = settings_of(self._config), number_of_workers(self._config)
        if self._met:
            return None
        if not settings.several_hosts:
            own = self._warmers.own
            self._met = {own.host.url: own}
            return None
        pool = settings.pool[:workers] if workers else settings.pool
        asked = {host.url: self._warmers.at(host) for host in pool}
        down = meet(
            asked,
            settings.host.source,
            lambda text: self._screen.say_once(text, least=-1),
            all_of_them=workers > 0,
        )
        if workers:
            return self._share_out(asked, down, workers, ends=ends)
        self._choose(asked, down)
        return None

    def _share_out(
        self, asked: dict[str, Warmer], down: list[Outcome], workers: int, *, ends: bool
    ) -> Outcome | None:
        """Prepare all hosts that answer, and move the workers of those that are *down*."""
        self.several = True
        answering = {url: warmer for url, warmer in asked.items() if _answers(warmer)}
        # Where none answers, what follows is for the tests to say, or for the run.
        self._met = answering or asked
        if left_out := settings_of(self._config).pool[len(asked) :]:
            self._screen.say_once(
                f"{count(workers, 'worker')}, and {len(asked) + len(left_out)} hosts: "
                f"{', '.join(host.url for host in left_out)} left out, -n "
                f"{len(asked) + len(left_out)} uses all"
            )
        if not (answering and down):
            return None
        self.down = down
        places = share_out(list(asked), workers, answering)
        for outcome in down[ends:]:
            who = "" if ends else moved(outcome.host, list(asked), places)
            self._screen.say_once(outcome.error, who=who, least=-2, red=True)
        if ends:
            return down[0]
        write_places(self._config, places)
        return None

    def _choose(self, asked: dict[str, Warmer], down: list[Outcome]) -> None:
        """Go on with the first host that answers: one process uses one."""
        chosen = next((warmer for warmer in asked.values() if _answers(warmer)), None)
        self.down = [] if chosen is None else down
        for warmer in asked.values():
            if warmer is not chosen:
                warmer.close()
        if chosen is None:
            self._met = dict([next(iter(asked.items()))])
            return
        host = chosen.host
        self._met = {host.url: chosen}
        for outcome in down:
            who = f"{host.url} is used"
            self._screen.say_once(outcome.error, who=who, least=-2, yellow=True)
        self._screen.say_once(
            f"one process uses one host, {host.url}: -n {len(asked)} spreads over all"
        )
        write_host(self._config, host)


def _answers(warmer: Warmer) -> bool:
    outcome = warmer.directory.server
    return outcome is not None and outcome.ready
