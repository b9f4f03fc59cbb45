"""The process of a run that brings models side by side, and shows how it goes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.ollama.replaced import suppressing
from pytest_ollama_warmup.session.run import Run
from pytest_ollama_warmup.text import seconds
from pytest_ollama_warmup.warmup.preloader import PULLS_SIDE_BY_SIDE, InThreads, Preparation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.responses import ModelInfo
    from pytest_ollama_warmup.report.progress import Screen
    from pytest_ollama_warmup.session.run import AskRequest
    from pytest_ollama_warmup.warmup.job import Event, Say
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome

SAY_WAITING_AFTER_S = 2.0
# How long the server may take to describe a model when the run is over.
SHOW_S = 5.0


def unload(outcomes: Iterable[Outcome], settings: Settings, others: Iterable[Host] = ()) -> None:
    """Take models out of memory; those that cannot be are left to their keep-alive.

    *others* are servers that may be among them, beside those of *settings*.
    """
    from pytest_ollama_warmup.ollama.client import Client

    clients: dict[str, Client] = {}
    # Outcomes hold no passwords.
    known = {host.url: host for host in (*others, *settings.hosts, settings.host)}
    for outcome in outcomes:
        with suppressing():
            if outcome.host not in clients:
                # A new one: that of the run may have been cut off by Ctrl-C.
                host = known.get(outcome.host) or read_host(outcome.host, "this run")
                clients[outcome.host] = Client(host, settings.api_key, settings.headers.value)
            clients[outcome.host].unload(outcome.model)
    for client in clients.values():
        with suppressing():
            client.close()


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


class Leader(Run):
    """Brings the models of a run, and says so on a *screen*."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        screen: Screen,
        ask_request: AskRequest = lambda spec: None,
    ) -> None:
        super().__init__(settings, folder, "main", ask_request)
        self.screen = screen
        # Whether sets of models have the server's memory in turn: one makes room for the next.
        self.takes_turns = settings.group_by_model.value
        self._said: set[str] = set()
        self._shows = True
        self._pulls = threading.Semaphore(PULLS_SIDE_BY_SIDE)
        self._begun: dict[str, threading.Event] = {}
        self.sites: dict[str, Leader] = {}
        """By URL those servers of several that answer, if the run has several."""
        self._preparation: Preparation = InThreads(
            self.work, lambda target: self.there(target).turns
        )

    def begin(self, targets: Iterable[Target]) -> None:
        """Ask the server, then begin to bring *targets* in the background, where it answers."""
        self.record.server = self.server()
        answered = []
        for target in targets:
            there = self.there(target)
            server = there.server()
            if server.ready:
                answered.append(target)
            else:
                self.record.add(there.failed_like(server, target), target.id)
        self.begin_beside(answered)

    def begin_beside(self, targets: Iterable[Target]) -> None:
        """Begin to bring *targets*; that of the server which they wait for is no part of this."""
        # Asked here: what a suite's own hook does, it may expect to do in the main thread.
        asked = [self.asked(target) for target in targets]
        for target in asked:
            # Made before the threads begin, which would else make one each. Why one cannot be made
            # is said where the server is asked.
            with suppressing():
                self.there(target).client()
            self._begun.setdefault(target.id, threading.Event())
        self._preparation.start(asked)

    def wait_until_begun(self, targets: Iterable[Target]) -> None:
        """Wait until no worker can begin with *targets*, which are being brought here."""
        for target in targets:
            # In slices, so that Ctrl-C is answered at once.
            while not self._begun[target.id].wait(0.1):
                pass

    def there(self, target: Target) -> Leader:
        """Return the view of the run on the server of *target*."""
        return self.sites[target.host] if target.host else self

    def server(self) -> Outcome:
        """Return whether the server answers; of several, whether any does."""
        site = next(iter(self.sites.values()), None)
        return super().server() if site is None else site.server()

    def events(self, until: Literal["present", "done"]) -> Iterator[Event | None]:
        """Yield what happens; see :meth:`Preparation.events`."""
        for event in self._preparation.events(until):
            if event is not None and event.outcome is not None:
                self.record.add(event.outcome, event.target.id)
            yield event

    def wait(
        self, until: Literal["present", "done"], is_over: Callable[[], bool] = lambda: False
    ) -> None:
        """Show what happens until no model is short of *until*, or *is_over* says so."""
        self.screen.where = ", ".join(one.url.partition("://")[2] for one in self._hosts())
        with self.screen.watching():
            for event in self.events(until):
                self.screen.tick(event)
                if is_over():
                    break

    def _hosts(self) -> list[Host]:
        return [site.settings.host for site in self.sites.values()] or [self.settings.host]

    def close(self) -> None:
        """Cut what is still under way, here and in other processes that work for this one."""
        self._preparation.close()
        for site in self.sites.values():
            site.close()
        super().close()

    def work(self, target: Target, say: Say) -> Outcome:
        """Bring one model, if the server answers; that is known where it was asked before."""
        there, begun = self.there(target), self._begun[target.id]
        try:
            room = None if self.takes_turns else there.room
            return there.bring(target, say, there._pulls, begun.set, room)
        finally:
            begun.set()

    def show(self, name: str) -> ModelInfo | None:
        """Return what the server says of a model at the end of the run; None where it does not."""
        if not self._shows:
            return None
        try:
            return self.client().show(name, limit_s=SHOW_S)
        except Exception:
            # Each further question might take as long.
            self._shows = False
            return None

    def on_wait(self, cause: str, waited_s: float) -> None:
        """Say what is waited for, when that takes longer than a moment, and now and then again."""
        if text := waiting(self.settings, cause, waited_s, self.screen.every_s):
            self.say_waiting(text)

    def say_waiting(self, text: str) -> None:
        """Say once what is waited for."""
        self.say_once(text, least=-1)

    def say_once(self, text: str, *, who: str = "", least: int = 0, **colours: bool) -> None:
        """Say what has happened, if it was not said before; see :meth:`Screen.say`."""
        if text not in self._said:
            self._said.add(text)
            self.screen.say(text, who=who, least=least, **colours)

    def say_interrupted(self) -> None:
        """Say what Ctrl-C has ended."""
        doing = ", ".join(self.screen.under_way) or f"waiting for {self.settings.addresses}"
        later = " A pull goes on where it stopped." if "pulling" in doing else ""
        self.screen.say(f"interrupted: {doing}.{later}", least=-2)
