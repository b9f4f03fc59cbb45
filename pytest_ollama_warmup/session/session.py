"""One pytest run in the process that prepares its models: before collection, tests, and its end.

That process runs no tests meanwhile: it is the controller of xdist, or the only one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import pytest

from pytest_ollama_warmup.config.settings import OUTER_RUN
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.report import findings
from pytest_ollama_warmup.report.messages import Consequences
from pytest_ollama_warmup.session import skipped_last_run
from pytest_ollama_warmup.session.address import (
    set_environment,
)
from pytest_ollama_warmup.session.cache import (
    learn,
    learn_skips,
    remember_run,
    skipped,
)
from pytest_ollama_warmup.session.header import refuse_models_as_paths
from pytest_ollama_warmup.session.notes import write_notes
from pytest_ollama_warmup.session.preparation import Preparation
from pytest_ollama_warmup.session.state import (
    CHECK,
    WARMERS,
    directory_of,
    gates_of,
    settings_of,
)
from pytest_ollama_warmup.session.terminal import write_error
from pytest_ollama_warmup.session.terminal_summary import Summary
from pytest_ollama_warmup.text import explained, wanted_by
from pytest_ollama_warmup.warmup.check import Check
from pytest_ollama_warmup.warmup.plan import SERVER, Plan, groups_of, make_plan, variants_of
from pytest_ollama_warmup.warmup.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.memory import Memory
    from pytest_ollama_warmup.warmup.outcome import Outcome
    from pytest_ollama_warmup.warmup.plan import Target, Want


class WarmupSession:
    """Prepares the models of a run, says so, and ends the run where it must."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin(
            "terminalreporter"
        )
        self._directory, self.record = directory_of(config), Record()
        self._preparation = Preparation(config, self.record)
        self._screen, self._hosts = self._preparation.screen, self._preparation.hosts
        self._news, self._background = self._preparation.news, self._preparation.background
        config.stash[WARMERS] = self._preparation.warmers
        if self._background is not None:
            wait_for = self._background.wait_for
            config.stash[CHECK] = Check(self._preparation.warmers, wait_for)
        self._summary = Summary(config, self._terminal, self._directory, self._hosts)
        self._plan, self._learned = Plan(), dict[str, int]()
        # Whose turn is first where groups take turns; None where none do.
        grouped = self._settings.group_by_model.value
        self._first: frozenset[str] | None = frozenset() if grouped else None
        self._collected = self._interrupted = self._ended = False
        # Whether tests wait for all models before the first of them.
        self._holds_up = self._background is None
        self._left = skipped_last_run.Left({}, set(), {})
        self._left_targets: list[Target] = []
        # For runs inside this run's tests: what the environment lists is there already.
        set_environment(config, OUTER_RUN, str(os.getpid()))

    @property
    def _settings(self) -> Settings:
        return settings_of(self._config)

    @property
    def _consequences(self) -> Consequences:
        return Consequences(self._plan, self._settings, collected=self._collected)

    @property
    def header_notes(self) -> list[str]:
        """Lines for pytest's header, besides what it says of each run."""
        return self._preparation.header_notes

    @property
    def leaves_models(self) -> bool:
        """Whether models are left to tests that skipped in the last run."""
        return bool(self._left.gates)

    # Before collection

    def start(self) -> None:
        """Step 1: pull what is listed and missing, then load it beside what pytest does next."""
        refuse_models_as_paths(self._config)
        self._plan = make_plan(self._settings.listed, (), up_front=True)
        with self._screen.before_header():
            with self._blocking():
                self._begin()
                if self._background is None:
                    # Where groups take turns nothing is loaded yet.
                    self._wait("present" if self._first is None else "done")
            self._end_run_if_over()
        self.record.clock_started = clock.time()
        if self._background is not None:
            self.record.waited_s = 0.0

    # After collection

    def before_tests(self, wants: list[Want], selected: int) -> None:
        """Step 2: prepare what the *selected* tests need besides; wait for all of it."""
        settings = self._settings
        # Where those run that get another server is known when their fixtures are.
        here = [want for want in wants if not want.elsewhere]
        self._plan = make_plan(settings.listed, here, up_front=settings.up_front)
        self._leave_out()
        if settings.group_by_model.value:
            self._take_turns(here)
        if variants := variants_of(self._plan):
            self._directory.variants.write(variants)
        self._collected = True
        self.record.tests = self._plan.tests
        # In a suite in which any test may need any model, all wait.
        self._holds_up = self._background is None or not wants
        # With no test to run there is nothing to wait for.
        if selected and (self._plan.targets or self._plan.needs) and not self._leaves_all():
            with self._blocking():
                self._begin()
                if self._holds_up:
                    self._wait("done")
            self.record.prepared = clock.time()
            self._conclude()
            if any(outcome.is_watched for outcome in self.record.outcomes):
                self._watch(mixed=selected > len(wants))
        if not self._holds_up:
            # Tests have begun by then.
            self.record.waited_s = self.record.prepared = 0.0

    def after_tests(self) -> None:
        """Where models were prepared in the background, see it to its end."""
        if self._background is not None and self._plan.marked and not self._holds_up:
            self._holds_up = True
            self._wait("done")
            self._conclude()

    def _take_turns(self, wants: list[Want]) -> None:
        """Have the sets of models that tests need take turns, the first one with a model first."""
        groups = groups_of(wants, self._settings.listed)
        self._first = None
        if groups:
            with_model = (group for group in groups if group & self._plan.targets.keys())
            self._first = next(with_model, frozenset())
        else:
            self._preparation.load_in_any_order()
            self._screen.say_once(
                explained(
                    f"{self._settings.group_by_model.source} groups nothing: no selected test says "
                    "which model it needs. Mark those that do: "
                    '@pytest.mark.requires_model("...").',
                    "groups",
                ),
                least=-1,
            )
        self._directory.groups.write([sorted(group) for group in groups])

    def _watch(self, *, mixed: bool) -> None:
        """Have processes look also where tests do not say what they need."""
        if not self._plan.marked:
            self._directory.watched.set()
        # In the background models are still being loaded, and come and go by our own doing.
        elif mixed and self._background is None:
            self._directory.mixed.set()
            for warmer in self._hosts.in_use:
                warmer.look_between()

    def _leave_out(self) -> None:
        """Leave models to tests that skipped at set-up in the last run, if only those need them."""
        listed, up_front = self._settings.listed, self._settings.up_front
        always = [spec.key for spec in listed.specs] if up_front else []
        self._left = skipped_last_run.what_is_left(self._plan, skipped(self._config), always)
        self._left_targets = [self._plan.targets.pop(key) for key in sorted(self._left.targets)]
        gates_of(self._config).expect(self._left.gates)
        for line in skipped_last_run.lines(self._plan, self._left):
            self._screen.say_once(line, least=-1)

    def _leaves_all(self) -> bool:
        """Whether all tests that need Ollama are expected to skip, and nothing is to be asked.

        Where the address is to be found out first, it has to be known when one of them runs.
        """
        plan, settings = self._plan, self._settings
        if plan.targets or not self._left.gates:
            return False
        if settings.serve.value or settings.several_hosts:
            return False
        if self._config.hook.pytest_ollama_host.get_hookimpls():
            return False
        return all(need.test in self._left.gates for needs in plan.needs.values() for need in needs)

    def _begin(self) -> None:
        """Begin to prepare what the plan asks for."""
        if self._settings.problem is not None:
            raise pytest.UsageError(str(self._settings.problem))
        consequences, collected = self._consequences, self._collected
        ends = any(map(consequences.ends_run, [*self._plan.targets, *self._plan.needs]))
        ending = self._preparation.begin(self._plan, self._first, ends=ends, collected=collected)
        if ending is not None:
            self._end_run(ending)

    def _wait(self, until: Literal["present", "done"]) -> None:
        self._preparation.wait(until, self._is_over)

    def _is_over(self) -> bool:
        # The first one ends the run: no further download for one that will not be.
        return self._consequences.ending(self.record.outcomes) is not None

    # What came of it

    def _conclude(self) -> None:
        """End the run where that is to be, or say what has become of the models."""
        if not self._holds_up:
            return
        self._end_run_if_over()
        self._news.no_room(marked=self._plan.marked)
        self._news.changed(self.record)
        self._say_what_is_unable()
        server = self._hosts.in_use[0].server() if SERVER in self._plan.needs else None
        for failure in self._consequences.failures(self.record.outcomes, server):
            self._news.failure(failure)
        self._news.problems([*self._plan.problems.values()])
        for warmer in self._preparation.warmers:
            warmer.unreported.clear()

    def _say_what_is_unable(self) -> None:
        """Say which tests ask of a model that is ready what it cannot do."""
        for outcome in self.record.outcomes:
            if self._consequences.unchecked(outcome):
                self._news.unchecked(outcome)
            for failed, failure, ends in self._consequences.unable(outcome):
                if ends:
                    self._end_run(failed)
                self._news.failure(failure)

    def _end_run_if_over(self) -> None:
        # Not before the bars are gone: with them would go what is written below them.
        if (outcome := self._consequences.ending(self.record.outcomes)) is not None:
            self._end_run(outcome)

    def _end_run(self, outcome: Outcome) -> NoReturn:
        self._ended = True
        if not self._collected and self._config.get_verbosity() > 0:
            # After an exit at session start pytest prints no summary.
            self.summarize()
        from pytest_ollama_warmup.session.junit import note_failure

        note_failure(self._config, outcome, started=self._collected)
        named = outcome.names_host or not self._hosts.several
        error = outcome.error if named else f"{outcome.host}: {outcome.error}"
        what, *cure = error.split("\n")
        needs = self._plan.needs.get(outcome.key, ())
        who = wanted_by([need.test for need in needs]) if needs else ""
        advice = " ".join([*cure[-1:], self._consequences.way_out(outcome)])
        texts = [*filter(None, [what, who]), *cure[:-1], advice]
        write_error(self._config, texts, at_start=not self._collected)
        of_model = f"{outcome.title}: " if outcome.model else ""
        pytest.exit(f"ollama: {of_model}{outcome.brief}", returncode=2)

    # At the end

    def learn(self) -> None:
        """Keep for the next run what this one has seen."""
        write_notes(self._config)
        targets = [*self._plan.targets.values(), *self._left_targets]
        set_ups = skipped_last_run.set_ups(self._directory)
        learn_skips(self._config, set_ups, [target.spec for target in targets])
        if self._settings.listed.given_by == "configuration":
            left = skipped_last_run.what_is_left(self._plan, skipped(self._config), ())
            remember_run(
                self._config, [key for key in self._plan.targets if key not in left.targets]
            )
        for url, memory in self._summary.memories().items():
            self._learned |= learn(self._config, memory, url)

    def complete(self) -> Record:
        """Return the record of the run, with what its processes have left."""
        self._summary.complete(self.record, self._plan, interrupted=self._interrupted)
        grouped, marked = self._settings.group_by_model.value, self._plan.marked
        run = findings.Run(self._learned, grouped=grouped, marked=marked)
        self.record.findings = self._summary.findings(self.record, run)
        return self.record

    def memories(self) -> list[Memory]:
        """Return what was seen of the memory of each server."""
        return [*self._summary.memories().values()]

    def summarize(self) -> None:
        """Write the table of what the models cost."""
        record, is_new = self.complete(), self._screen.is_new
        self._summary.write(record, self._consequences, is_new=is_new, ended=self._ended)
        managed = self._preparation.managed
        if managed is None or self._terminal is None:
            return
        if {"failed", "error"} & self._terminal.stats.keys():
            from pytest_ollama_warmup.session.managed import log_lines

            for line in log_lines(managed):
                self._terminal.write_line(line)

    def close(self) -> None:
        """Cut what is under way; unload what this run has loaded, where that is asked for."""
        self._preparation.close()

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
            self._preparation.say_interrupted()
            self.close()
            raise
        finally:
            self.record.waited_s += clock.monotonic() - begin
            self.record.busy.append((since, clock.time()))
