"""The models of a run as each of its processes sees them: recorded, or brought now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ollama_warmup.errors import NoModelNamed, ServerError, WaitedTooLong
from pytest_ollama_warmup.verdict import Verdict
from pytest_ollama_warmup.warmup.gate import Beat, Gate
from pytest_ollama_warmup.warmup.plan import SERVER, Target, Want, decide, resolve, target_of
from pytest_ollama_warmup.warmup.record import Outcome, Record

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ollama_warmup.ollama.client import Client
    from pytest_ollama_warmup.settings import Settings
    from pytest_ollama_warmup.warmup.bring import Say
    from pytest_ollama_warmup.warmup.spec import ModelSpec


class Run:
    """One process's view. httpx is imported only by the process that has to ask the server."""

    def __init__(self, settings: Settings, folder: Path, by: str) -> None:
        self.settings, self.by = settings, by
        self.record = Record()
        # A leader may wait for the server, and then for a load, without a sign of progress.
        self.gate = Gate(folder, settings.load_timeout.value + settings.wait.value)
        self._client: Client | None = None
        self._known: dict[str, Outcome] = {}

    def close(self) -> None:
        """Cut what is still under way, so that the server stops it too."""
        if self._client is not None:
            self._client.abort()
            self._client.close()

    def verdict(self, want: Want) -> Verdict | None:
        """Return why a test that wants *want* cannot run; None when all is ready."""
        settings = self.settings
        try:
            specs = resolve(want, settings.listed)
        except NoModelNamed as exc:
            return Verdict("fail", str(exc))
        problem, given_by = None, settings.listed.given_by
        for target in [target_of(spec, settings.listed, [want.test]) for spec in specs]:
            outcome = self.outcome(target)
            if outcome.ready:
                outcome = outcome.for_tests_that_need(target.spec.capabilities, target.origin)
            if not outcome.ready:
                problem, given_by = outcome, target.given_by
                break
        if not specs:
            problem = self.server()
        if problem is None or problem.ready:
            return None
        policy = decide(settings.on_missing.value, want.on_missing, given_by, settings.ci)
        return Verdict(policy, problem.error)

    def outcome(self, target: Target) -> Outcome:
        """Return what became of a model, bringing it if no process of the run has."""
        if target.key not in self._known:
            self._known[target.key] = self.gate.peek(target.key) or self._bring_here(target)
        return self._known[target.key]

    def server(self) -> Outcome:
        """Return whether the server answers, asking it if no process of the run has.

        It is asked once: the tests after the first must not wait for it again, each.
        """
        if SERVER not in self._known:
            self._known[SERVER] = self.gate.once(SERVER, self._ask_server)
        return self._known[SERVER]

    def look_up(self, spec: ModelSpec) -> Outcome:
        """Return what became of a model that a test names at run time."""
        return self.outcome(target_of(spec, self.settings.listed, []))

    def on_wait(self, cause: str, waited_s: float) -> None:
        """Hear that the server does not answer yet."""

    def client(self) -> Client:
        """Return the client of this process, made when first needed."""
        if self._client is None:
            from pytest_ollama_warmup.ollama.client import Client

            self._client = Client(self.settings.host, self.settings.api_key)
        return self._client

    def bring(self, target: Target, say: Say, beat: Beat) -> Outcome:
        """Make one model ready; the caller holds the gate."""
        from pytest_ollama_warmup.warmup.bring import bring

        return bring(self.client(), target, self.settings.terms, by=self.by, say=say, beat=beat)

    def failed_like(self, server: Outcome, target: Target) -> Outcome:
        """Record that *target* failed because the server did."""
        spec = target.spec
        outcome = replace(server, key=target.key, model=spec.name, options=spec.options)
        return self.gate.once(target.key, lambda beat: outcome)

    def _bring_here(self, target: Target) -> Outcome:
        server = self.server()
        if not server.ready:
            return self.failed_like(server, target)
        try:
            return self.gate.once(
                target.key, lambda beat: self.bring(target, lambda event: None, beat)
            )
        except WaitedTooLong as exc:
            from pytest_ollama_warmup.warmup.bring import failed

            return failed(target, exc, self.by)

    def _ask_server(self, beat: Beat) -> Outcome:
        settings = self.settings
        try:
            if settings.problem is not None:
                return self._server_failed(str(settings.problem), "a bad environment variable")
            version = self.client().wait_until_ready(settings.wait.value, self.on_wait)
        except ServerError as exc:
            return self._server_failed(str(exc), exc.brief)
        return Outcome(key=SERVER, model="", status="ready", by=self.by, notes=(version,))

    def _server_failed(self, error: str, brief: str) -> Outcome:
        return Outcome(key=SERVER, model="", status="failed", by=self.by, error=error, brief=brief)
