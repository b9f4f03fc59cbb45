"""The two steps before the first test: what is listed at session start, the rest once it is known.

They run in the process that runs no tests at the same time: the controller of xdist, or the only
process.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import pytest

from pytest_ollama_warmup.config.settings import OUTER_RUN
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.names import ModelName
from pytest_ollama_warmup.ollama.replaced import suppressing
from pytest_ollama_warmup.report import findings
from pytest_ollama_warmup.report.summary import (
    ARROWS,
    can_write_signs,
    finding_lines,
    is_worth_a_table,
    lost_lines,
    ready_after,
    rows_of,
    summary_lines,
    waited_line,
)
from pytest_ollama_warmup.session import gates, notes
from pytest_ollama_warmup.session.cache import (
    changed,
    crowds,
    learn,
    learn_skips,
    remember_run,
    skipped,
    with_learned,
)
from pytest_ollama_warmup.session.header import header, hints, refuse_models_as_paths
from pytest_ollama_warmup.session.hosts import Site, meet, moved, share_out
from pytest_ollama_warmup.session.leader import Leader, unload
from pytest_ollama_warmup.session.run import (
    GROUPS,
    MIXED,
    VARIANTS,
    elsewhere,
    folder_at,
    is_watched,
)
from pytest_ollama_warmup.session.state import (
    EARLY,
    folder_of,
    number_of_workers,
    set_environment,
    settings_of,
    warn,
    warn_unencrypted,
    write_host,
    write_places,
)
from pytest_ollama_warmup.session.terminal import screen_of, width_of
from pytest_ollama_warmup.session.unavailable import concerned, note_in_junit
from pytest_ollama_warmup.session.user_hooks import ask_host, ask_request
from pytest_ollama_warmup.session.watch import WATCHED
from pytest_ollama_warmup.text import at, count, seconds, wanted_by, wrapped
from pytest_ollama_warmup.warmup.guard import all_known
from pytest_ollama_warmup.warmup.in_use import InUse
from pytest_ollama_warmup.warmup.locks import Gate, write_whole
from pytest_ollama_warmup.warmup.memory import Memory
from pytest_ollama_warmup.warmup.plan import (
    SERVER,
    Need,
    Plan,
    Policy,
    Want,
    decide,
    decisions,
    groups_of,
    make_plan,
    variants_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_ollama_warmup.ollama.host import Host
    from pytest_ollama_warmup.ollama.process import ManagedServer
    from pytest_ollama_warmup.warmup.job import Event
    from pytest_ollama_warmup.warmup.plan import Target
    from pytest_ollama_warmup.warmup.record import Outcome

SERVERS_OWN_STALL_S = 300.0


class Controller(Leader):
    """Brings the models of a run, says so, and ends the run where it must."""

    def __init__(self, config: pytest.Config) -> None:
        self._terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin(
            "terminalreporter"
        )
        screen = screen_of(config, self._terminal)
        super().__init__(
            settings_of(config), folder_of(config), screen, lambda spec: ask_request(config, spec)
        )
        self._config = config
        self.early = config.stash.get(EARLY, {})
        self._managed: ManagedServer | None = None
        self._plan = Plan()
        # Whose turn is first where groups take turns; None before that is known.
        self._first: frozenset[str] | None = frozenset()
        self._collected = False
        self._interrupted = self._ended = False
        self.header_notes: list[str] = []
        """Lines for pytest's header, besides what it says of each run."""
        self._host_asked = self._header_said = False
        self._seen: dict[str, Memory] | None = None
        self._learned: dict[str, int] = {}
        self._left = gates.Left({}, set(), {})
        self._left_targets: list[Target] = []
        # Servers of several that do not answer, while others do.
        self._down: list[Outcome] = []
        # Not in a child or a run inside a test, which uses what this run has loaded.
        self._in_use: InUse | None = None
        # Told to runs inside this run's tests: what the environment lists is there already.
        set_environment(config, OUTER_RUN, str(os.getpid()))

    def close(self) -> None:
        """Cut what is under way; unload what this run has loaded, where that is asked for."""
        super().close()
        if self._managed is not None:
            # With all that is loaded.
            self._managed.stop()
        elif self._in_use is not None:
            # Where no lock can be had, or httpx is replaced, models are left to their keep-alive.
            with suppressing(), self._in_use.leaving():
                others = [run.settings.host for run in self._elsewhere.values()]
                unload(self._to_unload(self._in_use), self.settings, others)
            self._in_use = None

    def _to_unload(self, in_use: InUse) -> list[Outcome]:
        """Return what this run unloads: what it has loaded, or was left to it, and nobody uses."""
        found = []
        for one in self.outcomes().values():
            if one.step("load") is None:
                continue
            key = ModelName.parse(one.model).key
            # A note from before this run loaded it is out of date.
            asked = in_use.was_asked(one.host, key) and one.found_loaded
            if not asked and (one.found_loaded or not self.settings.unload.value):
                continue
            if in_use.others(one.host, key):
                in_use.ask_to_unload(one.host, key)
                self.say_once(f"{one.model} stays loaded: another run uses it, and unloads it")
            else:
                found.append(one)
        return found

    def session_start(self) -> None:
        """Step 1: pull what is listed and missing, then load it beside what pytest does next."""
        refuse_models_as_paths(self._config)
        self._plan = make_plan(self.settings.listed, (), up_front=True)
        with self.screen.before_header():
            with self._blocking():
                self._begin()
                self._wait_for_listed()
            self._end_run_if_over()
        self.record.clock_started = clock.time()

    def before_tests(self, wants: list[Want], selected: int) -> None:
        """Step 2: bring what the *selected* tests need beside that; wait for all of it."""
        settings = self.settings
        # Where those run that get another server is known when their fixtures are.
        here = [want for want in wants if not want.elsewhere]
        self._plan = make_plan(settings.listed, here, up_front=settings.up_front)
        self._leave_out()
        if settings.group_by_model.value:
            groups = groups_of(here, settings.listed)
            first = next((one for one in groups if one & self._plan.targets.keys()), frozenset())
            self._first, self.takes_turns = (first, True) if groups else (None, False)
            if not groups:
                self.say_once(
                    f"{settings.group_by_model.source} groups nothing: no selected test says which "
                    'model it needs. Mark those that do: @pytest.mark.requires_model("...").',
                    least=-1,
                )
            write_whole(self.folder / GROUPS, [sorted(group) for group in groups])
        if variants := variants_of(self._plan):
            write_whole(self.folder / VARIANTS, variants)
        self._collected = True
        self.record.tests = self._plan.tests
        # With no test to run there is nothing to wait for.
        if selected and (self._plan.targets or self._plan.needs) and not self._leaves_all():
            with self._blocking():
                self._begin()
                self._wait_for_all()
            self.record.prepared = clock.time()
            self._conclude()
            if any(is_watched(one) for one in self.record.outcomes):
                self._watch(mixed=selected > len(wants))

    def _watch(self, *, mixed: bool) -> None:
        """Have processes look also where tests do not say what they need."""
        if not self._plan.marked:
            (self.root / WATCHED).touch()
        # In the background models are still being loaded, and come and go by our own doing.
        elif mixed and not self.settings.background.value:
            (self.root / MIXED).touch()
            for there in self._everywhere():
                there.look_between()

    def _leave_out(self) -> None:
        """Leave models to tests that skipped at set-up in the last run, if only those need them."""
        up_front = self.settings.up_front
        always = [spec.key for spec in self.settings.listed.specs] if up_front else []
        self._left = gates.what_is_left(self._plan, skipped(self._config), always)
        self._left_targets = [self._plan.targets.pop(key) for key in sorted(self._left.targets)]
        self.leaves = bool(self._left.gates)
        gates.write(self.root, self._left.gates)
        for line in gates.lines(self._plan, self._left):
            self.say_once(line, least=-1)

    def _leaves_all(self) -> bool:
        """Whether all tests that need Ollama are expected to skip, and nothing is to be asked.

        Where the address is to be found out first, it has to be known when one of them runs.
        """
        plan, settings = self._plan, self.settings
        if plan.targets or not self.leaves or settings.serve.value or settings.pool:
            return False
        if self._config.hook.pytest_ollama_host.get_hookimpls():
            return False
        return all(need.test in self._left.gates for needs in plan.needs.values() for need in needs)

    def after_tests(self) -> None:
        """Where models were brought beside the tests, see it to its end."""

    def events(self, until: Literal["present", "done"]) -> Iterator[Event | None]:
        """Yield what happens, and say why it is pulled where only CI allows that."""
        for event in super().events(until):
            if event is not None and event.phase == "pulling" and self._pulls_for_ci(event.target):
                self.say_once(
                    f"{self.settings.ci_variable} is set, so missing models are pulled; with "
                    "--ollama-ci=no only those that you list are",
                    least=-1,
                )
            yield event

    def _pulls_for_ci(self, target: Target) -> bool:
        settings = self.settings
        return bool(settings.ci_variable) and not settings.terms._replace(ci=False).may_pull(
            target.given_by
        )

    def _wait_for_listed(self) -> None:
        # Where groups take turns nothing is loaded yet.
        grouped = self.settings.group_by_model.value
        self.wait("done" if grouped else "present", self._is_over)

    def _wait_for_all(self) -> None:
        self.wait("done", self._is_over)

    def _conclude(self) -> None:
        """End the run where that is to be, or say what has become of the models."""
        self._end_run_if_over()
        self._check_room()
        for outcome in self.record.models.values():
            if text := changed(self._config, outcome):
                self.say_once(text)
        self._check_capabilities()
        self._say_failures()
        self._unreported.clear()

    def learn(self) -> None:
        """Keep for the next run what this one has seen."""
        self.write_notes()
        targets = [*self._plan.targets.values(), *self._left_targets]
        learn_skips(self._config, notes.set_ups(self.root), [one.spec for one in targets])
        if self.settings.listed.given_by == "configuration":
            left = gates.what_is_left(self._plan, skipped(self._config), ())
            remember_run(
                self._config, [key for key in self._plan.targets if key not in left.targets]
            )
        for url, memory in self._memories().items():
            self._learned |= learn(self._config, memory, url)

    def _memories(self) -> dict[str, Memory]:
        """Return what was seen of each server's memory, by its URL."""
        if self._seen is None:
            several = bool(self.sites)
            self._seen = {
                there.settings.host.url: Memory.read(
                    there.folder,
                    there.own_outcomes(),
                    there.settings.host.url if several else "",
                    there.show,
                )
                for there in self._everywhere()
            }
            # Those that the suite's own fixture names.
            for folder in [] if several else sorted(self.root.glob("host-*")):
                outcomes = Gate(folder, 0.0).outcomes()
                if url := next((one.host for one in outcomes), ""):
                    self._seen[url] = Memory.read(folder, outcomes, url)
        return self._seen

    def summary(self) -> None:
        """Write the table of what the models cost."""
        if self._terminal is None:
            return
        # In the order of the plan; a worker may have brought more at run time.
        # What fails after Ctrl-C fails by our own hand.
        found = self.record.models | {
            key: one for key, one in self.outcomes().items() if one.ready or not self._interrupted
        }
        if self._plan.targets or len(found) > 1:
            found.pop(SERVER, None)
        found |= {at(SERVER, one.host): elsewhere(one) for one in self._down}
        order = [target.id for target in self._planned() if target.id in found]
        self.record.models = {key: found[key] for key in [*order, *found]}
        verbosity = self._config.get_verbosity()
        quiet, verbose = verbosity < -1, verbosity > 0
        self.record.known = [*all_known(self.root)]
        self.record.waits, self.record.lost = notes.waits(self.root), notes.lost(self.root)
        plain, width = not can_write_signs(sys.stdout), width_of(self._config, self._terminal)
        lines = summary_lines(self.record, only_failed=quiet, plain=plain, width=width)
        found_out = [] if quiet else self._findings()
        waited = "" if quiet else waited_line(self.record)
        # What has ended the run is said once.
        worth = is_worth_a_table(self.record) and not self._ended
        if (lines and (worth or verbose)) or found_out:
            self._terminal.ensure_newline()
            self._terminal.section("ollama models", sep="-")
            for key, line in zip(rows_of(self.record, only_failed=quiet), lines, strict=True):
                self._write_signed(line, **self._colour(key))
            for text in found_out:
                for number, line in enumerate(finding_lines(text, plain=plain, width=width)):
                    self._write_signed(line, yellow=not number)
            # Of a run that has ended before its tests, no time is worth a word.
            if not (quiet or self._ended) and (after := ready_after(self.record)):
                waited = f"{after}\n{waited}".rstrip()
            for text in waited.splitlines():
                for line in wrapped(text, width, 2):
                    self._terminal.write_line(line)
        if self._managed is not None and {"failed", "error"} & self._terminal.stats.keys():
            from pytest_ollama_warmup.session.managed import log_lines

            for line in log_lines(self._managed):
                self._terminal.write_line(line)

    def _colour(self, key: str) -> dict[str, bool]:
        """Return the colour of a row's sign: what is skipped is no failure."""
        outcome = self.record.models[key]
        if outcome.ready:
            return {"green": True}
        skips = self._collected and {"skip"} == set(self._decisions(outcome.key))
        return {"yellow": True} if skips else {"red": True}

    def _write_signed(self, line: str, **colour: bool) -> None:
        """Write a line whose first character has a colour."""
        assert self._terminal is not None
        self._terminal.write(line[:1], **colour)
        self._terminal.write_line(line[1:])

    def _findings(self) -> list[str]:
        grouped = self.settings.group_by_model.value
        run = findings.Run(self._learned, grouped=grouped, marked=self._plan.marked)
        lines = [*notes.moved(self.root), *lost_lines(self.record)]
        for memory in self._memories().values():
            lines += findings.findings(memory, run)
        return lines

    def _begin(self) -> None:
        if self.settings.problem is not None:
            raise pytest.UsageError(str(self.settings.problem))
        self._ask_host()
        self._say_header()
        pool = self.settings.pool or (self.settings.host,)
        if text := warn_unencrypted(self._config, pool):
            self.say_once(text, least=-2)
        self._meet_hosts()
        for there in self._everywhere():
            there.room.learn(crowds(self._config, there.settings.host.url))
        new = [one for one in map(self._now, self._planned()) if self._is_new(one)]
        self._note_use(new)
        self.begin(with_learned(self._config, self.settings.host.url, new))
        self._record_failed_server()

    def _note_use(self, targets: Iterable[Target]) -> None:
        """Let other runs see what this one uses; a server of its own has no other users."""
        if self.settings.serve.value or self.settings.inner:
            return
        self._in_use = self._in_use or InUse()
        for target in targets:
            url = target.host or self.settings.host.url
            self._in_use.add(url, target.spec.model_key)

    def _record_failed_server(self) -> None:
        """Where no model was to come, it is the server that is shown to be missing."""
        server = self.record.server
        if server is not None and not server.ready and not self._plan.targets:
            self.record.add(server)

    def _planned(self) -> list[Target]:
        """Return what the plan asks for, on each server of the run."""
        targets = self._plan.targets.values()
        if not self.sites:
            return list(targets)
        return [target._replace(host=url) for target in targets for url in self.sites]

    def _everywhere(self) -> list[Leader]:
        """Return the views of the run on each of its servers."""
        return list(self.sites.values()) or [self]

    def _meet_hosts(self) -> None:
        """Where several servers are given, ask them, once, and go on with those that answer."""
        pool, workers = self.settings.pool, number_of_workers(self._config)
        if self.sites or not pool:
            return
        sites = {host.url: self._site(host) for host in (pool[:workers] if workers else pool)}
        source = self.settings.host.source
        down = meet(sites, source, self.say_waiting, all_of_them=workers > 0)
        if workers:
            self._share_out(sites, down, workers)
        else:
            self._choose(sites, down)

    def _site(self, host: Host) -> Site:
        settings = self.settings.on(host)
        return Site(settings, folder_at(self.root, host.url), self.screen, self._ask_request)

    def _share_out(self, sites: dict[str, Site], down: list[Outcome], workers: int) -> None:
        """Prepare all of *sites* that answer, and move the workers of those that are *down*."""
        answering = {url: site for url, site in sites.items() if site.answers}
        # Where none answers, what follows is for the tests to say, or for the run.
        self.sites = dict(answering or sites)
        if left_out := self.settings.pool[len(sites) :]:
            self.say_once(
                f"{count(workers, 'worker')}, and {len(sites) + len(left_out)} hosts: "
                f"{', '.join(host.url for host in left_out)} left out, -n "
                f"{len(sites) + len(left_out)} uses all"
            )
        if not (answering and down):
            return
        self._down = down
        keys = [*self._plan.targets, *self._plan.needs]
        ends = any("exit" in self._decisions(key) for key in keys)
        places = share_out(list(sites), workers, answering)
        for outcome in down[ends:]:
            what = "" if ends else moved(outcome.host, list(sites), places)
            self.say_once(outcome.error, who=what, least=-2, red=True)
        if ends:
            self._end_run(down[0])
        write_places(self._config, places)

    def _choose(self, sites: dict[str, Site], down: list[Outcome]) -> None:
        """Go on with the first of *sites* that answers: one process uses one."""
        chosen = next((one for one in sites.values() if one.answers), None)
        for site in sites.values():
            site.close()
        self._down = down
        if chosen is None:
            self.gate.once(SERVER, lambda beat: down[0])
            return
        host = chosen.settings.host
        for outcome in down:
            self.say_once(outcome.error, who=f"{host.url} is used", least=-2, yellow=True)
        self.say_once(f"one process uses one host, {host.url}: -n {len(sites)} spreads over all")
        write_host(self._config, host)

    def _now(self, target: Target) -> Target:
        """Return *target*, to be only pulled where others have their turn first."""
        if self.settings.group_by_model.value and self._first is not None:
            return target._replace(loads=target.key in self._first)
        return target

    def _is_new(self, target: Target) -> bool:
        outcome = self.record.models.get(target.id)
        return outcome is None or (
            self.settings.group_by_model.value
            and target.loads
            and outcome.ready
            and outcome.step("load") is None
        )

    def reach(self) -> str:
        """Wait for the server, which is started first where the run has its own."""
        settings = self.settings
        if not settings.serve.value or settings.served or self._managed is not None:
            return super().reach()
        from pytest_ollama_warmup.session.managed import start_server

        workers = number_of_workers(self._config)
        self._managed = start_server(self._config, settings, self._plan.targets.values(), workers)
        serving = f"serving on {self.settings.host.url}, log in {self._managed.log}"
        if self._plan.marked or self._collected:
            self.say_once(serving)
        else:
            self.header_notes.append(f"ollama: {serving}")
        client, limit_s = self.client(), self.settings.wait.value
        return self._managed.wait_until_ready(client, limit_s, self.on_wait)

    def _ask_host(self) -> None:
        """Take the server that the suite's own hook names, once, and tell all who ask later."""
        if self._host_asked:
            return
        self._host_asked = True
        host = ask_host(self._config, self.settings, self.say_once)
        if host is not None:
            write_host(self._config, host)

    def _is_over(self) -> bool:
        # The first one ends the run: no further download for one that will not be.
        return self._ending() is not None

    def _end_run_if_over(self) -> None:
        # Not before the bars are gone: with them would go what is written below them.
        if (outcome := self._ending()) is not None:
            self._end_run(outcome)

    def _ending(self) -> Outcome | None:
        """Return the outcome that ends the run, if there is one."""
        for outcome in self.record.models.values():
            if not outcome.ready and "exit" in self._decisions(outcome.key):
                return outcome
        return None

    def _decisions(self, key: str) -> list[Policy]:
        settings = self.settings
        if self._collected:
            return decisions(self._plan, key, settings.on_unavailable.value, settings.ci)
        # Before collection nobody knows which tests there are to fail or to skip.
        given_by = self._plan.targets[key].given_by
        one = decide(settings.on_unavailable.value, "", given_by, settings.ci)
        return ["exit" if one == "exit" else "skip"]

    def _fates(self, key: str) -> list[tuple[Need, Policy]]:
        """Return what each test does that needs *key*, should that fail."""
        return list(zip(self._plan.needs.get(key, []), self._decisions(key), strict=False))

    def _end_run(self, outcome: Outcome) -> NoReturn:
        self._ended = True
        if not self._collected and self._config.get_verbosity() > 0:
            # After an exit at session start pytest prints no summary.
            self.summary()
        needs = self._plan.needs.get(outcome.key, ())
        note_in_junit(self._config, outcome, started=self._collected)
        what, *cure = self._located(outcome).split("\n")
        who = wanted_by([need.test for need in needs]) if needs else ""
        advice = " ".join([*cure[-1:], self._way_out(outcome)])
        self._write_error([*filter(None, [what, who]), *cure[:-1], advice])
        of_model = f"{outcome.title}: " if outcome.model else ""
        pytest.exit(f"ollama: {of_model}{outcome.brief}", returncode=2)

    def _write_error(self, texts: list[str]) -> None:
        """Write what ends the run, once; its last text is what to do about it.

        Before pytest's session has started that goes to where pytest writes its own usage errors.
        """
        writer, terminal = self._config.get_terminal_writer(), self._terminal
        at_start = not self._collected or terminal is None
        file = sys.stderr if at_start else sys.stdout
        width = width_of(self._config, terminal) if terminal is not None else 0
        arrow = ARROWS[not can_write_signs(file)]
        lines = [
            *wrapped(f"ERROR: ollama: {texts[0]}", width, 0),
            *(line for text in texts[1:-1] for line in wrapped(text, width, 0)),
            *wrapped(f"{arrow} {texts[-1]}", width, 2),
        ]
        if at_start:
            writer.flush()
            coloured = writer.hasmarkup and file.isatty()
            for line in lines:
                text = writer.markup(line, red=True) if coloured else line
                print(text, file=file, flush=True)
            return
        assert terminal is not None
        terminal.ensure_newline()
        for line in lines:
            terminal.write_line(line, red=True)

    def _way_out(self, outcome: Outcome) -> str:
        """Say what makes the run go on that *outcome* ends."""
        settings, target = self.settings, self._plan.targets.get(outcome.key)
        if any(need.on_unavailable == "exit" for need in self._plan.needs.get(outcome.key, ())):
            return "The mark of a test that needs it says on_unavailable='exit'."
        by_option = target is not None and target.given_by == "option"
        if settings.decided_by_ci and not by_option:
            return f"{settings.decided_by_ci} is set; --ollama-ci=no goes on without it."
        return "--ollama-on-unavailable=skip goes on without it."

    def _located(self, outcome: Outcome) -> str:
        """Return an error, with its server where that is one of several, and not named in it."""
        named = not self.sites or outcome.host in outcome.error
        return outcome.error if named else f"{outcome.host}: {outcome.error}"

    def _check_room(self) -> None:
        """Say which models are not loaded before the tests, and why."""
        for there in self._everywhere():
            self._check_room_at(there)

    def _check_room_at(self, there: Leader) -> None:
        where = f"{there.settings.host.url}: " if self.sites else ""
        cure = "raise the server's OLLAMA_MAX_LOADED_MODELS."
        if self._plan.marked:
            cure = f"use --ollama-group-by-model, or {cure}"
        for by, names in there.room.displaced.items():
            self.say_once(
                f"{where}{' and '.join(names)} had to make room for {by}; what is left is loaded "
                f"when a test uses it. To keep all in memory, {cure}",
                least=-1,
            )
        for one in there.own_outcomes():
            if one.left_out:
                self.say_once(f"{where}{one.title} is not loaded yet: {one.left_out}", least=-1)

    def _check_capabilities(self) -> None:
        """Say which tests ask of a model that is ready what it cannot do."""
        for outcome in list(self.record.models.values()):
            self._check_capabilities_of(outcome)

    def _check_capabilities_of(self, outcome: Outcome) -> None:
        if outcome.ready:
            asking: dict[tuple[str, ...], list[tuple[Need, Policy]]] = {}
            for need in self._plan.needs.get(outcome.key, ()):
                if need.capabilities:
                    # The model is there: what is listed is no matter of one test's wishes.
                    on_unavailable, ci = self.settings.on_unavailable.value, self.settings.ci
                    policy = decide(on_unavailable, need.on_unavailable, "default", ci)
                    asking.setdefault(need.capabilities, []).append((need, policy))
            for capabilities, fates in asking.items():
                if outcome.capabilities is None:
                    self.say_once(
                        f"{outcome.model}: unknown what it can do, as servers before v0.6.4 do not "
                        "tell; tests that ask for capabilities run all the same"
                    )
                failed = outcome.for_tests_that_need(capabilities, "")
                if not failed.ready:
                    if any(policy == "exit" for _, policy in fates):
                        self._end_run(failed)
                    self._say_failure(failed.error, concerned(self.settings, fates), fates)

    def _say_failures(self) -> None:
        failures: dict[str, list[Outcome]] = {}
        for outcome in self.record.models.values():
            if not outcome.ready:
                failures.setdefault(outcome.error, []).append(outcome)
        for error, outcomes in failures.items():
            keys = [one.key for one in outcomes]
            if SERVER in self._plan.needs and error == self.server().error:
                keys.append(SERVER)
            what = self._where(outcomes) or self._consequence(keys)
            fates = [fate for key in dict.fromkeys(keys) for fate in self._fates(key)]
            self._say_failure(error, what, fates)
        for problem in self._plan.problems.values():
            self.say_once(problem, least=-2, red=True)

    def _say_failure(self, error: str, who: str, fates: list[tuple[Need, Policy]]) -> None:
        """Say what is wrong, whom that concerns and how, and what to do; in yellow for skips."""
        skips = {"skip"} == {policy for _, policy in fates} or not fates
        colour = {"yellow": True} if skips else {"red": True}
        self.say_once(error, who=who, least=-2, **colour)

    def _where(self, outcomes: list[Outcome]) -> str:
        """Say where a model is not ready that is on other servers; empty where it is on none."""
        keys = {one.key for one in outcomes}
        ready = {one.key for one in self.record.models.values() if one.ready}
        policies = {policy for key in keys for _, policy in self._fates(key)}
        if not (keys <= ready and policies):
            return ""
        urls = ", ".join(dict.fromkeys(one.host for one in outcomes))
        what = " or ".join({"skip": "are skipped", "fail": "fail"}[one] for one in sorted(policies))
        return f"so it is at {urls}, and not elsewhere: tests that need it {what} there"

    def _consequence(self, keys: list[str]) -> str:
        """Say what the tests do that need *keys*, and the flag that makes them do otherwise."""
        fates = [fate for key in dict.fromkeys(keys) for fate in self._fates(key)]
        if not fates:
            if not self._plan.marked:
                models = ", ".join(self._plan.targets[key].spec.title for key in keys)
                self._warn_once(f"{models}: listed, and not ready; all tests run without")
                return "no test says that it needs it: all run without it"
            return "no selected test needs it"
        return concerned(self.settings, fates)

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        """Count the time in which tests wait, and say what Ctrl-C interrupts."""
        begin, since = clock.monotonic(), clock.time()
        try:
            yield
        except KeyboardInterrupt:
            self._interrupted = True
            if self._terminal is not None and self._terminal.isatty:
                # The terminal has echoed ^C.
                self._terminal.write_line("")
            self.say_interrupted()
            self.close()
            raise
        finally:
            self.record.waited_s += clock.monotonic() - begin
            self.record.busy.append((since, clock.time()))

    def _say_header(self) -> None:
        if self._header_said:
            return
        self._header_said = True
        # Where models are listed, pytest's own header says it.
        if not self.settings.up_front:
            if self._config.get_verbosity() > 0:
                self.say_once(header(self._config))
            for hint in hints(self._config):
                self.say_once(hint)
        limit_s = self.settings.load_timeout.value
        if limit_s < SERVERS_OWN_STALL_S:
            self._warn_once(
                f"--ollama-load-timeout is {seconds(limit_s)}, shorter than the "
                f"{seconds(SERVERS_OWN_STALL_S)} after which the server itself ends a stalled load"
            )

    def _warn_once(self, text: str) -> None:
        if text in self._said:
            return
        self._said.add(text)
        if not warn(self._config, text):
            self.screen.say(text, least=-1)
