"""``--ollama-unload``: what a run has loaded is unloaded at its end, unless another run uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.config.options import read_host
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.replaced_httpx import suppressing
from pytest_ollama_warmup.warmup.in_use import InUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.report.progress import Screen
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.warmer import Warmers


class Unloading:
    """Lets other runs see which models this one uses, and unloads those at its end."""

    def __init__(self, settings: Callable[[], Settings], warmers: Warmers, screen: Screen) -> None:
        self._settings, self._warmers, self._screen = settings, warmers, screen
        # Not in a child or a run inside a test, which uses what this run has loaded.
        self._in_use: InUse | None = None

    def use(self, targets: Iterable[Target]) -> None:
        """Let other runs see that this one uses *targets*; its own server has no other users."""
        settings = self._settings()
        if settings.serve.value or settings.inner:
            return
        self._in_use = self._in_use or InUse()
        for target in targets:
            self._in_use.add(target.host, target.spec.model_key)

    def end(self) -> None:
        """Unload what is to be unloaded; nothing is used any more after that."""
        in_use, self._in_use = self._in_use, None
        if in_use is None:
            return
        # Where no lock can be had, or httpx is replaced, models are left to their keep-alive.
        with suppressing(), in_use.leaving():
            hosts = [warmer.host for warmer in self._warmers]
            _unload(self._to_unload(in_use), self._settings(), hosts)

    def _to_unload(self, in_use: InUse) -> list[Outcome]:
        """Return what this run unloads: what it has loaded, or was left to it, and nobody uses."""
        to_unload = []
        for host in self._warmers.directory.hosts():
            for outcome in host.outcomes():
                if outcome.step("load") is None:
                    continue
                key = ModelName.parse(outcome.model).key
                # A note from before this run loaded it is out of date.
                asked = in_use.was_asked(outcome.host, key) and outcome.found_loaded
                wanted = self._settings().unload.value and not outcome.found_loaded
                if not (asked or wanted):
                    continue
                if in_use.others(outcome.host, key):
                    in_use.ask_to_unload(outcome.host, key)
                    self._screen.say_once(
                        f"{outcome.model} stays loaded: another run uses it, and unloads it"
                    )
                else:
                    to_unload.append(outcome)
        return to_unload


def _unload(outcomes: Iterable[Outcome], settings: Settings, others: Iterable[Host]) -> None:
    """Take models out of memory; those that cannot be are left to their keep-alive.

    *others* are hosts that may be among them, besides those of *settings*.
    """
    from pytest_ollama_warmup.ollama.client import Client

    clients: dict[str, Client] = {}
    # Outcomes hold no passwords.
    hosts = {host.url: host for host in (*others, *settings.hosts, settings.host)}
    for outcome in outcomes:
        with suppressing():
            if outcome.host not in clients:
                # A new one: that of the run may have been cut off by Ctrl-C.
                host = hosts.get(outcome.host) or read_host(outcome.host, "this run")
                clients[outcome.host] = Client(host, settings.api_key, settings.headers.value)
            clients[outcome.host].unload(outcome.model)
    for client in clients.values():
        with suppressing():
            client.close()
