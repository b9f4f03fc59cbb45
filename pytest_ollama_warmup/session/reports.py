"""Reports of a run: checked before it, written at its end, however that comes."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.config.settings import Setting
from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.ollama.logs import LOG
from pytest_ollama_warmup.report.messages import policy
from pytest_ollama_warmup.session.junit import junit_plugins, note_properties
from pytest_ollama_warmup.session.state import (
    GITHUB_SUMMARY,
    directory_of,
    settings_of,
    wants_report,
)
from pytest_ollama_warmup.text import clean
from pytest_ollama_warmup.warmup.record import Record, RunInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.session.session import WarmupSession

_REPORTS = "ollama_warmup_reports"


def prepare_reports(config: pytest.Config) -> Reports:
    """See before the run that its reports can be written, and write them at its end.

    Raises:
        pytest.UsageError: one of them cannot be written.
    """
    plugin: Reports | None = config.pluginmanager.get_plugin(_REPORTS)
    if plugin is not None:
        return plugin
    paths = [_checked(config, text) for text in settings_of(config).report.value]
    reports = Reports(config, paths)
    config.pluginmanager.register(reports, _REPORTS)
    return reports


def _checked(config: pytest.Config, text: str) -> Path:
    """Return where a report goes: a configuration file counts from its own directory.

    Raises:
        pytest.UsageError: it cannot be written there.
    """
    from pytest_ollama_warmup.report.files import check, missing_for

    report, path = settings_of(config).report, Path(text)
    if words := missing_for(path):
        raise pytest.UsageError(f"{report.source} {clean(path.name)}: {words}")
    by_file = report.given_by == "configuration"
    try:
        path = (config.rootpath if by_file else config.invocation_params.dir) / path.expanduser()
        check(path)
    # Of "~name" nobody may know the home.
    except (OSError, RuntimeError) as exc:
        why = getattr(exc, "strerror", "") or str(exc)
        raise pytest.UsageError(f"{report.source}: cannot write {clean(path)}: {why}") from None
    return path


class Reports:
    """Hooks at the end of a run, in the process that has the record."""

    def __init__(self, config: pytest.Config, paths: list[Path]) -> None:
        self._config, self._paths, self._started = config, paths, clock.time()
        self._exit_status: int | None = None
        self.session: WarmupSession | None = None
        """Has the record; None where the run needs no model."""
        self._is_over = False
        self._document: dict[str, Any] = {}

    # First: pytest's own writes its file in this hook.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Keep how the run ended, and add what it used to a JUnit file."""
        self._exit_status = int(exitstatus)
        if self.session is not None:
            note_properties(self._config)

    # Last: what goes into the reports is complete after the table.
    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the reports, and say where they are."""
        self._write()

    def pytest_unconfigure(self) -> None:
        """Write the reports of a run that has had no summary: it ended before its first test."""
        self._write()

    def _write(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            self._document = self._record().to_dict()
        except Exception:
            LOG.debug("the record of the run cannot be read", exc_info=True)
            self._say("cannot write the report: the record of the run cannot be read", red=True)
            return
        self._write_files()
        self._write_github()

    def _write_files(self) -> None:
        from pytest_ollama_warmup.report.files import write

        written = []
        for path in self._paths:
            try:
                write(self._document, path)
            except Exception as exc:
                LOG.debug("the report %s cannot be written", path, exc_info=True)
                why = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
                self._say(f"cannot write {clean(path)}: {clean(why)}", red=True)
            else:
                written.append(_shown(path, self._config))
        if written and self._config.get_verbosity() >= -1:
            self._say(f"report written to {', '.join(written)}")

    def _write_github(self) -> None:
        """Add a table and a chart to the summary of a GitHub job, and annotate what went wrong."""
        if settings_of(self._config).inner or not self._document["models"]:
            return
        from pytest_ollama_warmup.report.github import commands, step_summary

        if path := os.environ.get(GITHUB_SUMMARY, ""):
            try:
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(step_summary(self._document))
            except OSError as exc:
                self._say(f"cannot write {GITHUB_SUMMARY}: {exc.strerror}", red=True)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in commands(self._document):
                self._write_line(line)

    def _record(self) -> Record:
        config = self._config
        record = Record()
        if self.session is not None:
            record = self.session.complete()
            if wants_report(config):
                from pytest_ollama_warmup.warmup.cold import with_cold
                from pytest_ollama_warmup.warmup.ran_tests import read_tests

                directory = directory_of(config)
                ran, record.others = read_tests(directory.all_ran_tests())
                record.ran = with_cold(ran, self.session.memories(), directory.hosts())
        record.run = RunInfo(
            started=self._started,
            ended=clock.time(),
            exit_status=self._exit_status,
            plugin=_version(),
            pytest=pytest.__version__,
            python=platform.python_version(),
            settings=tuple(_values(settings_of(config))),
            means=tuple(_meanings(settings_of(config))),
        )
        return record

    def _say(self, text: str, **colours: bool) -> None:
        self._write_line(f"ollama: {text}", **colours)

    def _write_line(self, line: str, **colours: bool) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(line, **colours)


def is_read(config: pytest.Config) -> bool:
    """Whether anything reads the record of a run besides its summary on the terminal."""
    return (
        wants_report(config)
        or (os.environ.get("GITHUB_ACTIONS") == "true" and not settings_of(config).inner)
        or any(junit_plugins(config))
    )


def _shown(path: Path, config: pytest.Config) -> str:
    with suppress(ValueError):
        path = path.relative_to(config.invocation_params.dir)
    return clean(path)


def _version() -> str:
    try:
        return metadata.version("pytest-ollama-warmup")
    except metadata.PackageNotFoundError:
        return ""


def _meanings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what ``auto`` stands for in this run, by the name of the setting."""
    listed = "missing models that the command line or the environment lists"
    meanings = {
        "on_unavailable": policy(settings),
        "pull": "missing" if settings.ci else listed,
    }
    for name, meaning in meanings.items():
        if getattr(settings, name).value == "auto":
            yield name, meaning


def _values(settings: Settings) -> list[tuple[str, object, str]]:
    """Return the settings that a reader may see: no headers, and no passwords in addresses."""
    values: list[tuple[str, object, str]] = [("host", settings.addresses, settings.host.source)]
    for name, setting in zip(settings._fields, settings, strict=True):
        if isinstance(setting, Setting) and isinstance(
            setting.value, bool | int | float | str | None
        ):
            values.append((name, setting.value, setting.source))
    return values
