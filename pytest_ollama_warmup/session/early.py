"""Whether a load may be asked for before conftests are imported, and for which model.

All that pytest does by itself, imports and collection, then goes on beside the load. The steps of
the run ask as always later, and find the model loaded, or the load under way: only where that is
sure to be the same load is it asked for here.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ollama_warmup.errors import WarmupError
from pytest_ollama_warmup.ollama.early import EarlyLoad
from pytest_ollama_warmup.ollama.names import is_cloud
from pytest_ollama_warmup.ollama.proxy import proxy_for
from pytest_ollama_warmup.ollama.requests import headers, load_request
from pytest_ollama_warmup.session.cache import kind_of, last_run, with_learned
from pytest_ollama_warmup.session.replays import may_have_recorded
from pytest_ollama_warmup.session.state import EARLY, MANAGED, count_workers
from pytest_ollama_warmup.warmup.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pytest

    from pytest_ollama_warmup.config.settings import Settings
    from pytest_ollama_warmup.warmup.plan import Target

# In the text of what is imported first these may mean another server or another request. gevent
# warns where it comes after the library that sends ours.
_OTHER_REQUEST = re.compile(r"pytest_ollama_warmup_request|\bgevent\b")
_OTHER_HOST = re.compile(r"pytest_ollama_host|pytest_plugins|OLLAMA_HOST|dotenv")
# Who only reads the variable changes nothing.
_READS_HOST = re.compile(r"""(?:environ\.get|getenv)\(\s*["']OLLAMA_HOST["']""")


def ask_early(config: pytest.Config, settings: Settings) -> None:
    """Ask for the load of the model that the run loads first, if that can do no harm."""
    targets = make_plan(settings.listed, (), up_front=True).targets
    if settings.serve.value and settings.up_front:
        _start_server(config, settings, targets.values())
    target = _first(config, settings, targets)
    if target is None or not _is_sure(config, settings):
        return
    spec, host = target.spec, settings.host
    kind = kind_of(config, host.url, target)
    if kind is None:
        return
    early = EarlyLoad(
        host,
        spec.name,
        load_request(spec.name, kind, options=target.options),
        headers(host, settings.api_key, settings.headers.value),
        limit_s=settings.load_timeout.value,
        starts_s=settings.wait.value if settings.serve.value else 0.0,
    )
    config.stash[EARLY] = {target.key: early}
    config.add_cleanup(early.close)
    early.start()


def _start_server(config: pytest.Config, settings: Settings, targets: Iterable[Target]) -> None:
    from pytest_ollama_warmup.session.managed import start_server

    # Step 1 tries again, and can say what is wrong.
    with suppress(WarmupError, OSError):
        start_server(config, settings, targets, _workers_to_come(config.known_args_namespace))


def _first(
    config: pytest.Config, settings: Settings, targets: Mapping[str, Target]
) -> Target | None:
    """Return the one of *targets* that the run is sure to load first; None where it is not sure."""
    first = next(iter(targets), "")
    if not settings.up_front:
        # What a configuration file lists is loaded if tests need it: as in the same run before.
        needed = last_run(config)
        first = needed[0] if needed and {*needed} == {*targets} else ""
        # Tests that this run only replays are known after collection.
        if may_have_recorded(config.known_args_namespace):
            return None
    if not first:
        return None
    target = targets[first]._replace(host=settings.host.url)
    (target,) = with_learned(config, [target])
    # Only the client can find out whether what is there is what is pinned.
    return None if is_cloud(target.spec.name) or target.spec.digest else target


def _is_sure(config: pytest.Config, settings: Settings) -> bool:
    host = settings.host
    if settings.serve.value and MANAGED not in config.stash:
        return False
    if not host.url.startswith("http:") or settings.several_hosts or proxy_for(host):
        return False
    # What is pulled in any case is loaded after that; in a child process, nobody knows of it here.
    if settings.pull.value == "always" or settings.background.value:
        return False
    if settings.warm.value == "off" or settings.group_by_model.value:
        return False
    here, options = config.invocation_params.dir, config.known_args_namespace
    # Its arguments are modules, whose conftests nobody can find without importing them; what is
    # not there ends the run.
    if options.pyargs or not all(
        (here / _path(argument)).exists() for argument in options.file_or_dir
    ):
        return False
    texts = [*_texts(_first_imports(config))]
    if any(_OTHER_REQUEST.search(text) for text in texts):
        return False
    if settings.given_host.given_by == "option" or settings.serve.value:
        return True
    texts += _texts(_environment_files(config))
    return not any(_OTHER_HOST.search(_READS_HOST.sub("", text)) for text in texts)


def _first_imports(config: pytest.Config) -> Iterator[Path]:
    """Yield the files that pytest is about to import, and the plugins that the user names."""
    here, options = config.invocation_params.dir, config.known_args_namespace
    arguments = [here / _path(argument) for argument in options.file_or_dir]
    if not arguments:
        patterns = [str(config.rootpath / pattern) for pattern in config.getini("testpaths")]
        arguments = [
            Path(path)
            for pattern in patterns
            # pathlib refuses an absolute pattern, which a rootpath makes of each.
            for path in glob.glob(pattern)  # noqa: PTH207
        ]
    for argument in arguments or [here]:
        folder = argument if argument.is_dir() else argument.parent
        yield from (parent / "conftest.py" for parent in (folder, *folder.parents))
        yield from folder.glob("test*/conftest.py")
    named = [*options.plugins, *os.environ.get("PYTEST_PLUGINS", "").split(",")]
    for name in named:
        plugin = config.pluginmanager.get_plugin(name) or sys.modules.get(name)
        file = getattr(plugin, "__file__", None)
        if file and not getattr(plugin, "__name__", "").startswith("pytest_ollama_warmup."):
            yield Path(file)


def _path(argument: str) -> str:
    return argument.split("::")[0]


def _environment_files(config: pytest.Config) -> Iterator[Path]:
    """Yield the files from which plugins such as pytest-env and pytest-dotenv set variables."""
    for folder in {config.rootpath, config.invocation_params.dir}:
        yield folder / "pyproject.toml"
        yield from (parent / ".env" for parent in (folder, *folder.parents))
    if config.inipath is not None:
        yield config.inipath
    try:
        yield from (config.rootpath / name for name in config.getini("env_files"))
    except (ValueError, TypeError):
        return


def _texts(paths: Iterator[Path]) -> Iterator[str]:
    for path in dict.fromkeys(paths):
        try:
            yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _workers_to_come(options: Any) -> int:
    """Return what ``number_of_workers`` will say, by the *options* of the command line so far."""
    number = getattr(options, "numprocesses", None)
    if number in ("auto", "logical"):
        # A suite's own hook may find another number later; no more than so many tests run at once.
        number = os.cpu_count() or 1
        most: int | None = getattr(options, "maxprocesses", None)
        return min(number, most) if most else number
    return number if isinstance(number, int) else count_workers(getattr(options, "tx", []))
