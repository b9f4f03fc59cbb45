"""The table of what the models cost, and what was found, at the end of the run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_ollama_warmup.report import findings
from pytest_ollama_warmup.report.summary import (
    can_write_signs,
    finding_lines,
    is_worth_a_table,
    lost_lines,
    ready_after,
    rows_of,
    summary_lines,
    waited_line,
)
from pytest_ollama_warmup.session import notes
from pytest_ollama_warmup.session.terminal import width_of
from pytest_ollama_warmup.text import at, wrapped
from pytest_ollama_warmup.warmup.memory import Memory
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import SERVER
from pytest_ollama_warmup.warmup.record import Finding
from pytest_ollama_warmup.warmup.still_loaded import all_known

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pytest_ollama_warmup.report.messages import Consequences
    from pytest_ollama_warmup.session.hosts import Hosts
    from pytest_ollama_warmup.warmup.plan import Plan, Target
    from pytest_ollama_warmup.warmup.record import Record
    from pytest_ollama_warmup.warmup.run_directory import RunDirectory


class Summary:
    """Reads what the processes of a run have left, and writes it to *terminal*."""

    def __init__(
        self,
        config: pytest.Config,
        terminal: pytest.TerminalReporter | None,
        directory: RunDirectory,
        hosts: Hosts,
    ) -> None:
        self._config, self._terminal = config, terminal
        self._directory, self._hosts = directory, hosts
        self._memories: dict[str, Memory] | None = None

    def memories(self) -> dict[str, Memory]:
        """Return what was seen of each server's memory, by its URL; read once."""
        if self._memories is None:
            several, self._memories = self._hosts.several, {}
            for warmer in self._hosts.in_use:
                url = warmer.host.url
                self._memories[url] = Memory.read(
                    warmer.directory,
                    warmer.directory.outcomes(),
                    url if several else "",
                    warmer.describe,
                )
            # Those that the suite's own fixture names.
            for host in self._directory.hosts():
                outcomes = host.outcomes()
                url = next((outcome.host for outcome in outcomes), "")
                if url and url not in self._memories:
                    self._memories[url] = Memory.read(host, outcomes, url)
        return self._memories

    def complete(self, record: Record, plan: Plan, *, interrupted: bool) -> None:
        """Add to *record* what workers have met, in the order of the plan.

        What fails after Ctrl-C (*interrupted*) fails by our own hand.
        """
        models = record.models | {
            key: outcome
            for key, outcome in self._outcomes().items()
            if outcome.ready or not interrupted
        }
        if plan.targets or len(models) > 1:
            models.pop(SERVER, None)
        models |= {at(SERVER, outcome.host): _at_host(outcome) for outcome in self._hosts.down}
        planned = self._hosts.on_each(plan.targets.values())
        order = [target.id for target in planned if target.id in models]
        record.models = {key: models[key] for key in [*order, *models]}
        record.known = [ledger for host in self._directory.hosts() for ledger in all_known(host)]
        record.waits, record.lost = notes.waits(self._directory), notes.lost(self._directory)
        record.unfinished = [
            _unfinished(target) for target in planned if target.id not in record.models
        ]
        record.servers = [
            host.server for host in self._directory.hosts() if host.server is not None
        ]

    def write(
        self,
        record: Record,
        consequences: Consequences,
        *,
        is_new: Callable[[str], bool],
        ended: bool,
    ) -> None:
        """Write the table, where there is something in it; what has *ended* the run was said.

        A failure that *is_new* was met by a test that asked for its model only when it ran.
        """
        if self._terminal is None:
            return
        verbosity = self._config.get_verbosity()
        quiet, verbose = verbosity < -1, verbosity > 0
        plain, width = not can_write_signs(sys.stdout), width_of(self._config, self._terminal)
        lines = summary_lines(record, only_failed=quiet, plain=plain, width=width)
        shown = [] if quiet else record.findings
        waited = "" if quiet else waited_line(record)
        worth = is_worth_a_table(record) and not ended
        if not ((lines and (worth or verbose)) or shown):
            return
        self._terminal.ensure_newline()
        self._terminal.section("ollama models", sep="-")
        for key, line in zip(rows_of(record, only_failed=quiet), lines, strict=True):
            self._write_signed(line, **_colour(record.models[key], consequences))
        errors = [] if ended else [one.error for one in record.outcomes if not one.ready]
        failures = [Finding(*error.split("\n", 1)) for error in errors if error and is_new(error)]
        for finding in [*failures, *shown]:
            for number, line in enumerate(finding_lines(finding, plain=plain, width=width)):
                self._write_signed(line, yellow=not number)
        # Of a run that has ended before its tests, no time is worth a word.
        if not (quiet or ended) and (after := ready_after(record)):
            waited = f"{after}\n{waited}".rstrip()
        for text in waited.splitlines():
            for line in wrapped(text, width, 2):
                self._terminal.write_line(line)

    def _outcomes(self) -> dict[str, Outcome]:
        """Return what all processes of the run have recorded, by model and host."""
        in_use = self._hosts.in_use
        only = None if self._hosts.several else in_use[0].host.url
        outcomes = {}
        for host in self._directory.hosts():
            for outcome in host.outcomes():
                key = at(outcome.key, outcome.host)
                outcomes[key] = outcome if outcome.host == only else _at_host(outcome)
        if only and (server := in_use[0].directory.server) is not None:
            outcomes[SERVER] = server
        return outcomes

    def findings(self, record: Record, run: findings.Run) -> list[Finding]:
        """Return what was seen of the models; *run* decides which advice can help."""
        lines = [*notes.reordered(self._directory), *lost_lines(record)]
        for url, memory in self.memories().items():
            lines += findings.findings(memory, run)
            keys = {outcome.key for outcome in record.outcomes if outcome.host == url}
            record.switches |= {(key, url): len(memory.switches(key)) for key in keys}
        return [Finding(what, cure) for what, _, cure in (line.partition("\n") for line in lines)]

    def _write_signed(self, line: str, **colour: bool) -> None:
        """Write a line whose first character has a colour."""
        assert self._terminal is not None
        self._terminal.write(line[:1], **colour)
        self._terminal.write_line(line[1:])


def _colour(outcome: Outcome, consequences: Consequences) -> dict[str, bool]:
    """Return the colour of a row's sign: what is skipped is no failure."""
    if outcome.ready:
        return {"green": True}
    return {"yellow": True} if consequences.only_skips(outcome.key) else {"red": True}


def _unfinished(target: Target) -> Outcome:
    """Return a model whose preparation was cut off, as a failure."""
    return Outcome(
        key=target.key,
        model=target.spec.name,
        status="failed",
        brief="the run ended before it was ready",
        options=target.spec.options,
        host=target.host,
        pin=target.spec.digest,
        origin=target.origin,
    )


def _at_host(outcome: Outcome) -> Outcome:
    """Return *outcome* so that a table distinguishes it from those of the run's other hosts."""
    where = f"at {outcome.host}"
    notes_with_host = (where, *outcome.notes)
    return outcome._replace(notes=notes_with_host, brief=f"{where}: {outcome.brief}")
