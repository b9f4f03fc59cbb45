"""One run as a record, and the record as one JSON document.

``report/record.schema.json`` describes the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pytest_ollama_warmup.warmup.outcome import Known, Outcome, Reload, Step
    from pytest_ollama_warmup.warmup.ran_tests import OtherTests, RanTest

SCHEMA = 1


class Finding(NamedTuple):
    """What was seen of the models during the run, and what helps; empty where nothing is known."""

    text: str
    cure: str


class RunInfo(NamedTuple):
    """When and how a run took place; *exit_status* is None where it never had one.

    *settings* are values and their sources by name, *means* what ``auto`` stands for.
    """

    started: float = 0.0
    ended: float = 0.0
    exit_status: int | None = None
    plugin: str = ""
    pytest: str = ""
    python: str = ""
    settings: tuple[tuple[str, object, str], ...] = ()
    means: tuple[tuple[str, str], ...] = ()


class Record:
    """One run: each model's outcome, and the tests that need it, by key.

    *server* is the outcome of asking the server; *waited_s* counts seconds before the first test.
    *busy* are the times of that waiting, *clock_started* is when pytest began to count its own
    time, and *prepared* when the first test could begin (0 where that was not, or where tests ran
    meanwhile), all in seconds since the epoch;
    *waits* those before the tests that waited for their own models. *lost* are, by what was wrong,
    the tests whose models were ready, and could not be had any more. *unfinished* are the models
    whose preparation the end of the run has cut off, *previous* the digests that models had in the
    last run, by key, where they differ. *switches* says how often tests have reloaded a model with
    another context length, by its key and host. *ran* and *others* are the tests that ran, which
    are known only where a report is asked for.
    """

    def __init__(self) -> None:
        self.models: dict[str, Outcome] = {}
        self.tests: dict[str, list[str]] = {}
        self.waited_s = self.clock_started = self.prepared = 0.0
        self.busy: list[tuple[float, float]] = []
        self.waits: dict[str, float] = {}
        self.lost: dict[str, list[str]] = {}
        self.server: Outcome | None = None
        self.known: list[Known] = []
        self.run = RunInfo()
        self.servers: list[Outcome] = []
        self.unfinished: list[Outcome] = []
        self.previous: dict[str, str] = {}
        self.switches: dict[tuple[str, str], int] = {}
        self.findings: list[Finding] = []
        self.ran: list[RanTest] = []
        self.others: list[OtherTests] = []

    @property
    def outcomes(self) -> list[Outcome]:
        """What happened to each model, in the order in which they are listed."""
        return list(self.models.values())

    @property
    def failed(self) -> list[Outcome]:
        """The models that are not ready."""
        return [outcome for outcome in self.models.values() if not outcome.ready]

    def to_dict(self) -> dict[str, Any]:
        """Return builtins only: times and durations in seconds, sizes in bytes.

        Times are since the epoch. Texts are as they came; who shows them has to escape them.
        """
        return _document(self)

    def add(self, outcome: Outcome, key: str = "") -> None:
        """Keep *outcome*; a model may come twice: it is pulled, and later loaded.

        *key* is what makes it distinct from those on other hosts of the run.
        """
        self.models[key or outcome.key] = outcome


def _document(record: Record) -> dict[str, Any]:
    servers, run = _servers(record), record.run
    server = servers[0] if servers else None
    titles = {outcome.key: outcome.title for outcome in record.models.values()}
    means = dict(run.means)
    return {
        "schema": SCHEMA,
        "plugin_version": run.plugin,
        "pytest_version": run.pytest,
        "python_version": run.python,
        "started": run.started,
        "ended": run.ended,
        "exit_status": run.exit_status,
        "host": server.host if server else "",
        "version": _version(server),
        "waited_s": record.waited_s,
        "prepared": record.prepared,
        "settings": {
            name: {"value": value, "source": source, "means": means.get(name, "")}
            for name, value, source in run.settings
        },
        "servers": [_server(outcome) for outcome in servers],
        "models": [
            *(
                _model(record, key, outcome)
                for key, outcome in record.models.items()
                if outcome.model
            ),
            *(
                {**_model(record, outcome.key, outcome), "status": "unfinished"}
                for outcome in record.unfinished
            ),
        ],
        "tests": [_test(titles, test) for test in record.ran],
        "workers": _workers(record),
        "findings": [finding._asdict() for finding in record.findings],
        "lost": [{"error": error, "tests": tests} for error, tests in record.lost.items()],
    }


def _servers(record: Record) -> list[Outcome]:
    shown = [outcome for outcome in record.models.values() if not outcome.model]
    servers = [server for server in (record.server, *record.servers, *shown) if server is not None]
    return list({server.host: server for server in servers}.values())


def _server(server: Outcome) -> dict[str, Any]:
    return {
        "host": server.host,
        "version": _version(server),
        "status": server.status,
        "error": server.error,
        "steps": [_step(step) for step in server.aside],
    }


def _version(server: Outcome | None) -> str:
    return server.notes[0] if server and server.ready and server.notes else ""


def _step(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "start": step.start,
        "seconds": step.seconds,
        "size": step.size,
        "failed": False,
    }


def _aside(step: Step) -> dict[str, Any]:
    # A pull or a load stands there only where it has failed.
    return {**_step(step), "failed": step.kind in ("pull", "load")}


def _reload(reload: Reload) -> dict[str, Any]:
    return {
        "kind": "reload",
        "start": reload.start,
        "seconds": reload.seconds,
        "size": 0,
        "failed": False,
        "test": reload.test,
        "by": reload.by,
    }


def _model(record: Record, key: str, outcome: Outcome) -> dict[str, Any]:
    learned = {"num_ctx": outcome.learned} if outcome.learned else {}
    entries = [
        entry for entry in record.known if (entry.key, entry.host) == (outcome.key, outcome.host)
    ]
    steps = [_step(step) for step in outcome.steps] + [_aside(step) for step in outcome.aside]
    steps += [_reload(reload) for entry in entries for reload in entry.reloads]
    return {
        "key": outcome.key,
        "model": outcome.model,
        "title": outcome.title,
        "host": outcome.host,
        "status": outcome.status,
        "by": outcome.by,
        "error": outcome.error,
        "brief": outcome.brief,
        "cause": outcome.cause,
        "failed_by": outcome.failed_by,
        "notes": [note for note in outcome.notes if note != f"at {outcome.host}"],
        "origin": outcome.origin,
        "digest": outcome.digest,
        "previous_digest": record.previous.get(key, "") if outcome.digest else "",
        "pin": outcome.pin,
        "size": outcome.size,
        "memory": outcome.memory,
        "vram": outcome.vram,
        "capabilities": None if outcome.capabilities is None else list(outcome.capabilities),
        "context_length": outcome.context_length,
        "options": {**learned, **dict(outcome.options)},
        "option_sources": {
            **dict.fromkeys(learned, "learned in an earlier run"),
            **{name: outcome.origin or "the mark of a test" for name, _ in outcome.options},
        },
        "found_loaded": outcome.found_loaded,
        "left_out": outcome.left_out,
        "reloads_by_tests": record.switches.get((outcome.key, outcome.host), 0),
        "steps": sorted(steps, key=lambda step: float(step["start"])),
        "tests": record.tests.get(outcome.key, []),
    }


def _test(titles: dict[str, str], test: RanTest) -> dict[str, Any]:
    return {
        "test": test.test,
        "models": [titles.get(key, key) for key in test.keys],
        "worker": test.by,
        "host": test.host,
        "start": test.start,
        "seconds": test.seconds,
        "waited_s": test.waited_s,
        "cold": [titles.get(key, key) for key in test.cold],
        "outcome": test.outcome,
    }


def _workers(record: Record) -> list[dict[str, Any]]:
    """Return for each process that ran tests its server, and its tests that name no model."""
    workers: dict[str, dict[str, Any]] = {}

    def of(by: str, host: str) -> dict[str, Any]:
        return workers.setdefault(by, {"worker": by, "host": host, "tests": 0, "other_tests": []})

    for test in record.ran:
        of(test.by, test.host)["tests"] += 1
    for other in record.others:
        span = {"start": other.start, "seconds": other.seconds, "number": other.number}
        of(other.by, other.host)["other_tests"].append(span)
    return [workers[by] for by in sorted(workers, key=lambda by: (len(by), by))]
