"""The main job on a real server of the run's own, as on one that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import UserSuite
from tests.live.server import RealServer
from tests.live.test_main_job import CHAT, bring
from tests.unit.test_process import command_lines

if TYPE_CHECKING:
    from tests.live.provide import Provided
    from tests.live.registry import Registry

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["n0", "n2"])


@pytest.fixture
def served(
    parts: Provided, registry: Registry, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> UserSuite:
    """A suite whose user has a model on disk, and no server that runs."""
    store = pytester.path / "store"
    with RealServer(parts.ollama, models=store) as server:
        bring(server, registry, "completion", "llama3.2:1b")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    monkeypatch.setenv("HOME", str(pytester.path))
    monkeypatch.setenv("OLLAMA_NO_CLOUD", "1")
    suite = UserSuite(pytester)
    suite.write({"test_chat.py": CHAT.replace("MODEL", "llama3.2:1b")})
    return suite


def serve(parts: Provided) -> list[str]:
    return ["--ollama-serve", f"--ollama-serve-command='{parts.ollama}' serve"]


@WORKERS
@pytest.mark.parametrize("listed", [[], ["--ollama-preload=llama3.2:1b"]], ids=["marked", "listed"])
def test_every_test_is_warm_on_a_server_of_the_runs_own(
    served: UserSuite, parts: Provided, workers: list[str], listed: list[str]
) -> None:
    run = served.run(*serve(parts), *workers, *listed)
    assert run.counts == {"passed": 8}
    log = next(one.rpartition("log in ")[2] for one in run.ours if "log in" in one)
    text = Path(log).read_text("utf-8")
    assert text.count('msg="loading model via llama-server"') == 1
    assert not [line for line in command_lines().values() if str(served.pytester.path) in line]


def test_a_missing_model_is_pulled_into_the_users_store(
    served: UserSuite, parts: Provided, registry: Registry
) -> None:
    model = registry.name("embed")
    served.write({"test_chat.py": "def test_it(ollama_model): pass\n"})
    for made in (1, 0):
        run = served.run(*serve(parts), f"--ollama-preload={model},insecure=true")
        assert run.counts == {"passed": 1}
        assert made == sum("pulled" in one for one in run.table)


def test_a_store_that_cannot_be_written_is_told(
    served: UserSuite, parts: Provided, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write anywhere, but not below a file.
    (served.pytester.path / "file").touch()
    monkeypatch.setenv("OLLAMA_MODELS", str(served.pytester.path / "file" / "models"))
    run = served.run(*serve(parts), "--ollama-preload=llama3.2:1b")
    assert run.ret == 2
    assert "did not start: exit code 1" in run.out
    assert "not a directory" in run.out + run.err
