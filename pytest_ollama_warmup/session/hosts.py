"""Several servers: asked side by side, and shared out among the workers of pytest-xdist."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.replaced import as_error
from pytest_ollama_warmup.session.leader import Leader
from pytest_ollama_warmup.text import seconds
from pytest_ollama_warmup.warmup.plan import SERVER
from pytest_ollama_warmup.warmup.record import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

_SLICE_S = 0.1


class Site(Leader):
    """One of several servers; what there is to say of it is given to *say*, from any thread."""

    say: Callable[[str], None]

    def say_waiting(self, text: str) -> None:
        """Leave it to the main thread."""
        self.say(text)

    def record_server(self, outcome: Outcome) -> None:
        """Record whether the server answers, for all processes of the run."""
        self.gate.once(SERVER, lambda beat: outcome)

    @property
    def answers(self) -> bool:
        """Whether the server is recorded to answer."""
        outcome = self.gate.peek(SERVER)
        return outcome is not None and outcome.ready

    def asked_server(self) -> Outcome:
        """Return whether the server answers; that is not recorded yet."""
        try:
            return self._ask_server(lambda: None)
        except BaseException as exc:  # pytest reports what a thread does not catch
            url, problem = self.settings.host.url, as_error(exc, self.settings.host)
            brief = problem.brief
            return Outcome(
                key=SERVER, model="", status="failed", error=str(problem), brief=brief, host=url
            )


def ask(
    sites: Sequence[Site], say: Callable[[str], None], *, all_of_them: bool
) -> dict[str, Outcome]:
    """Return, by URL, which of *sites* answer; the wait for one is not added to that for another.

    Without *all_of_them* it is over when one answers and those before it do not.
    """
    heard: queue.SimpleQueue[str | tuple[str, Outcome]] = queue.SimpleQueue()
    for site in sites:
        site.say = heard.put

        def run(site: Site = site) -> None:
            heard.put((site.settings.host.url, site.asked_server()))

        # A daemon: Ctrl-C must not wait for it.
        threading.Thread(target=run, daemon=True, name=f"ollama {site.settings.host.url}").start()
    found: dict[str, Outcome] = {}
    while not _is_enough(sites, found, all_of_them=all_of_them):
        try:
            # In slices, so that Ctrl-C is answered at once.
            one = heard.get(timeout=_SLICE_S)
        except queue.Empty:
            continue
        if isinstance(one, str):
            say(one)
        else:
            found[one[0]] = one[1]
    return found


def meet(
    sites: Mapping[str, Site], source: str, say: Callable[[str], None], *, all_of_them: bool
) -> list[Outcome]:
    """Ask *sites*, by URL, and record what comes of it; return the outcomes of those that are down.

    *source* is who gave their addresses.
    """
    begin = clock.monotonic()
    found = ask(list(sites.values()), say, all_of_them=all_of_them)
    outcomes = [found[url] for url in sites if url in found]
    down = [one for one in outcomes if not one.ready]
    if len(down) == len(sites):
        down = _none_answers(down, source, clock.monotonic() - begin)
    for outcome in [*down, *outcomes]:
        sites[outcome.host].record_server(outcome)
    return down


def _is_enough(sites: Iterable[Site], found: dict[str, Outcome], *, all_of_them: bool) -> bool:
    for site in sites:
        outcome = found.get(site.settings.host.url)
        if outcome is None:
            return False
        if outcome.ready and not all_of_them:
            return True
    return True


def _none_answers(found: Collection[Outcome], source: str, waited_s: float) -> list[Outcome]:
    """Return *found*, which all failed, each with the words for all of them."""
    each = "; ".join(f"{one.host}: {one.brief.removeprefix('no Ollama: ')}" for one in found)
    error = (
        f"no Ollama at any of {len(found)} hosts (from {source}): {each}; gave up after "
        f"{seconds(waited_s)}.\nStart one with 'ollama serve', or set --ollama-host."
    )
    return [one._replace(error=error) for one in found]


def share_out(hosts: Sequence[str], workers: int, answering: Collection[str]) -> list[str]:
    """Return the URL for each worker: its own of *hosts* in turn, else one that is *answering*."""
    left = [url for url in hosts if url in answering]
    shared = []
    for number in range(workers):
        round_, place = divmod(number, len(hosts))
        own = hosts[place]
        shared.append(own if own in answering else left[(round_ + place) % len(left)])
    return shared


def moved(host: str, hosts: Sequence[str], places: Sequence[str]) -> str:
    """Say what the workers of *host* use in its place: ``gw1 uses http://b:11434.``."""
    parts = [
        f"gw{number} uses {place}"
        for number, place in enumerate(places)
        if hosts[number % len(hosts)] == host
    ]
    return f"{', '.join(parts)}."
