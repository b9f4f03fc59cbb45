"""Several servers: asked side by side, and shared out among the workers of pytest-xdist."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.replaced_httpx import as_error
from pytest_ollama_warmup.text import explained, seconds
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from pytest_ollama_warmup.warmup.warmer import Warmer

_SLICE_S = 0.1


def ask(
    warmers: Sequence[Warmer], say: Callable[[str], None], *, all_of_them: bool
) -> dict[str, Outcome]:
    """Return, by URL, which hosts answer; the wait for one is not added to that for another.

    Without *all_of_them* it is over when one answers and those before it do not. *say* is called in
    this thread only.
    """
    heard: queue.SimpleQueue[str | tuple[Warmer, Outcome]] = queue.SimpleQueue()
    for warmer in warmers:
        said_before, warmer.say_waiting = warmer.say_waiting, heard.put

        def run(warmer: Warmer = warmer) -> None:
            heard.put((warmer, _asked(warmer)))

        # A daemon: Ctrl-C must not wait for it.
        threading.Thread(target=run, daemon=True, name=f"ollama {warmer.host.url}").start()
    answers: dict[str, Outcome] = {}
    while not _is_enough(warmers, answers, all_of_them=all_of_them):
        try:
            # In slices, so that Ctrl-C is answered at once.
            news = heard.get(timeout=_SLICE_S)
        except queue.Empty:
            continue
        if isinstance(news, str):
            say(news)
        else:
            warmer, answers[news[0].host.url] = news
            warmer.say_waiting = said_before
    return answers


def _asked(warmer: Warmer) -> Outcome:
    try:
        return warmer.ask_server()
    except BaseException as exc:  # pytest reports what a thread does not catch
        outcome = Outcome(key=SERVER, model="", status="failed", host=warmer.host.url)
        return outcome.failing(as_error(exc, warmer.host))


def meet(
    warmers: Mapping[str, Warmer], source: str, say: Callable[[str], None], *, all_of_them: bool
) -> list[Outcome]:
    """Ask hosts, by URL, and record what comes of it; return the outcomes of those that are down.

    *source* is who gave their addresses.
    """
    begin = clock.monotonic()
    answers = ask(list(warmers.values()), say, all_of_them=all_of_them)
    outcomes = [answers[url] for url in warmers if url in answers]
    down = [outcome for outcome in outcomes if not outcome.ready]
    if len(down) == len(warmers):
        down = _none_answers(down, source, clock.monotonic() - begin)
    for outcome in [*down, *outcomes]:
        warmers[outcome.host].record_server(outcome)
    return down


def _is_enough(
    warmers: Iterable[Warmer], answers: dict[str, Outcome], *, all_of_them: bool
) -> bool:
    for warmer in warmers:
        outcome = answers.get(warmer.host.url)
        if outcome is None:
            return False
        if outcome.ready and not all_of_them:
            return True
    return True


def _none_answers(outcomes: Collection[Outcome], source: str, waited_s: float) -> list[Outcome]:
    """Return *outcomes*, which all failed, each with the words for all of them."""
    each = "; ".join(
        f"{outcome.host}: {outcome.brief.removeprefix('no Ollama: ')}" for outcome in outcomes
    )
    error = explained(
        f"no Ollama at any of {len(outcomes)} hosts (from {source}): {each}; gave up after "
        f"{seconds(waited_s)}.\nStart one with 'ollama serve', or fix {source}.",
        "none-of-several-hosts",
    )
    return [outcome._replace(error=error) for outcome in outcomes]


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
