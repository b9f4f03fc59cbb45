"""The models of a run are asked for, and shown while they get ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_ollama_warmup.session.address import (
    write_host,
)
from pytest_ollama_warmup.session.background import Background
from pytest_ollama_warmup.session.cache import crowds, with_learned
from pytest_ollama_warmup.session.hosts import Hosts
from pytest_ollama_warmup.session.news import News
from pytest_ollama_warmup.session.state import (
    EARLY,
    SYS_PATH,
    directory_of,
    is_distributing,
    number_of_workers,
    settings_of,
    warn_unencrypted,
)
from pytest_ollama_warmup.session.terminal import screen_of
from pytest_ollama_warmup.session.unloading import Unloading
from pytest_ollama_warmup.session.user_hooks import ask_host, ask_request
from pytest_ollama_warmup.warmup.plan import Plan
from pytest_ollama_warmup.warmup.preloader import Preloader, Threads
from pytest_ollama_warmup.warmup.warmer import Process, Warmers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.ollama.process import ManagedServer
    from pytest_ollama_warmup.warmup.job import Event
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.preloader import Executor
    from pytest_ollama_warmup.warmup.record import Record
    from pytest_ollama_warmup.warmup.warmer import Warmer


class Preparation:
    """Has the models of plans prepared on the hosts of the run; outcomes go into *record*."""

    def __init__(self, config: pytest.Config, record: Record) -> None:
        self._config, self._record = config, record
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")
        background = self._settings.background.value
        # pytest writes its dots while the controller of xdist prepares in the background.
        bars = not (background and is_distributing(config))
        self.screen = screen_of(config, self._terminal, bars=bars)
        self.warmers = self._new_warmers()
        self.hosts = Hosts(config, self.warmers, self.screen)
        self.news = News(config, self.screen, self.hosts)
        grouped = self._settings.group_by_model.value
        self._threads = Threads(self.hosts.warmer_of, in_turns=grouped)
        self._preloader = Preloader(self._executor(), record, self._asked)
        self.background = self._new_background() if background else None
        """What hears how it goes while tests run, where they do."""
        self._unloading = Unloading(lambda: self._settings, self.warmers, self.screen)
        self._plan, self._collected, self._host_asked = Plan(), False, False
        self.managed: ManagedServer | None = None
        """The server that this run has started."""
        self.header_notes: list[str] = []
        """Lines for pytest's header, besides what it says of each run."""

    @property
    def _settings(self) -> Settings:
        return settings_of(self._config)

    def begin(
        self, plan: Plan, first: frozenset[str] | None, *, ends: bool, collected: bool
    ) -> Outcome | None:
        """Ask the hosts, then begin with what *plan* asks for and is not under way yet.

        Only *first* is loaded where sets of models take turns; without turns it is None. *ends* is
        whether the run ends where a host does not answer: its outcome is returned then.
        """
        self._plan, self._collected = plan, collected
        self._ask_host()
        self.news.header()
        if text := warn_unencrypted(self._config, self._settings.pool):
            self.screen.say_once(text, least=-2)
        if (ending := self.hosts.meet(ends=ends)) is not None:
            return ending
        for warmer in self.hosts.in_use:
            warmer.room.learn(crowds(self._config, warmer.host.url))
        targets = with_learned(self._config, self.hosts.on_each(plan.targets.values()))
        self._unloading.use(targets)
        if self.background is None or self._settings.serve.value:
            # Only this process can start a server of its own.
            self._ask_servers(targets)
        self._start(targets, first)
        self._record_failed_server()
        return None

    def wait(self, until: Literal["present", "done"], is_over: Callable[[], bool]) -> None:
        """Show what happens until no model is short of *until*, or *is_over* says so."""
        if self.background is None:
            self.screen.follow(self._events(until), is_over)
        else:
            self.background.wait_for_all(is_over)
            self._record.server = self.hosts.in_use[0].directory.server
            self._record_failed_server()

    def say_interrupted(self) -> None:
        """Say what Ctrl-C has ended, also what had not been shown yet."""
        self.screen.say_interrupted(self._settings.addresses, self._preloader.pending())

    def load_in_any_order(self) -> None:
        """Have sets of models take no turns."""
        self._threads.in_turns = False

    def close(self) -> None:
        """Cut what is under way; unload what this run has loaded, where that is asked for."""
        self._preloader.close()
        self.warmers.close()
        if self.managed is not None:
            # With all that is loaded.
            self.managed.stop()
        else:
            self._unloading.end()

    def _new_warmers(self) -> Warmers:
        config = self._config
        process = Process(
            ask_request=lambda spec: ask_request(config, spec),
            reach=self._reach,
            say_waiting=lambda text: self.screen.say_once(text, least=-1),
            every_s=lambda: self.screen.every_s,
            early=config.stash.get(EARLY, {}),
        )
        return Warmers(lambda: settings_of(config), directory_of(config), process)

    def _executor(self) -> Executor:
        if self._settings.background.value and not is_distributing(self._config):
            # Imported here: most runs have no child, and pickle nothing.
            from pytest_ollama_warmup.warmup.child import Child

            # Mocks of tests reach threads of their process.
            return Child(lambda: self._settings, directory_of(self._config), _module_path())
        return self._threads

    def _new_background(self) -> Background:
        return Background(
            self._preloader,
            self.screen,
            self._terminal,
            lambda: self._events("done"),
            lambda: self.warmers.own.directory.server is not None,
        )

    def _ask_servers(self, targets: list[Target]) -> None:
        """Record whether the server answers, and as failed what its server does not answer for."""
        self._record.server = self.hosts.in_use[0].server()
        if self.background is not None:
            return
        for target in targets:
            warmer = self.hosts.warmer_of(target)
            server = warmer.server()
            if not server.ready and target.id not in self._record.models:
                self._record.add(warmer.failed_like(server, target), target.id)

    def _start(self, targets: list[Target], first: frozenset[str] | None) -> None:
        if first is None:
            begun = self._preloader.start(targets)
        else:
            later = [target for target in targets if target.key not in first]
            begun = self._preloader.start(later, "pull")
            begun += self._preloader.start([target for target in targets if target not in later])
        if self.background is not None and begun and is_distributing(self._config):
            # A worker that is faster would load one out of its turn, without a word of how far it
            # is, and in the midst of what its tests have mocked.
            self._threads.wait_until_begun(begun)
            self.background.listen()

    def _asked(self, target: Target) -> Target:
        return self.hosts.warmer_of(target).asked(target)

    def _reach(self, warmer: Warmer) -> str:
        """Wait for the server, which is started first where the run has its own."""
        settings = self._settings
        if not settings.serve.value or settings.served or self.managed is not None:
            return warmer.wait_until_ready()
        from pytest_ollama_warmup.session.managed import start_server

        workers = number_of_workers(self._config)
        self.managed = start_server(self._config, settings, self._plan.targets.values(), workers)
        serving = f"serving on {settings.host.url}, log in {self.managed.log}"
        if self._plan.marked or self._collected:
            self.screen.say_once(serving)
        else:
            self.header_notes.append(f"ollama: {serving}")
        return self.managed.wait_until_ready(warmer.client(), settings.wait.value, warmer.on_wait)

    def _ask_host(self) -> None:
        """Take the server that the suite's own hook names, once, and let all who ask later know."""
        if self._host_asked:
            return
        self._host_asked = True
        host = ask_host(self._config, self._settings, self.screen.say_once)
        if host is not None:
            write_host(self._config, host)

    def _events(self, until: Literal["present", "done"]) -> Iterator[Event | None]:
        """Yield what happens, and say why it is pulled where only CI allows that."""
        urls = [warmer.host.url.partition("://")[2] for warmer in self.hosts.in_use]
        self.screen.where, self.screen.several_hosts = ", ".join(urls), self.hosts.several
        for event in self._preloader.events(until):
            if event is not None and event.phase == "pulling" and self._pulls_for_ci(event.target):
                self.screen.say_once(
                    f"{self._settings.ci_variable} is set, so missing models are pulled; with "
                    "--ollama-ci=no only those that you list are",
                    least=-1,
                )
            yield event

    def _record_failed_server(self) -> None:
        """Where no model was to come, it is the server that is shown to be missing."""
        server = self._record.server
        if server is not None and not server.ready and not self._plan.targets:
            self._record.add(server)

    def _pulls_for_ci(self, target: Target) -> bool:
        terms = self._settings.terms._replace(ci=False)
        return bool(self._settings.ci_variable) and not terms.may_pull(target.given_by)


def _module_path() -> list[str]:
    # Without the directory of the tests, which "python -m pytest" puts there.
    return [path for path in SYS_PATH if path and Path(path) != Path.cwd()]
