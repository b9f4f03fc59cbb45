"""The command line on a real server: status, unload, cache-key, demo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command import Run

if TYPE_CHECKING:
    from tests.live.registry import Registry
    from tests.live.server import RealServer

CHAT, EMBED = "llama3.2:1b", "embed:a"


@pytest.fixture(autouse=True)
def _models(server: RealServer, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny models on the server, cold, under the names that users know."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    for model, name in (("completion", CHAT), ("embed", EMBED)):
        pulled = registry.name(model)
        server.pull(pulled)
        server.post("/api/copy", {"source": pulled, "destination": name})
        server.delete(pulled)


def test_status_and_unload(server: RealServer) -> None:
    assert 1 == Run("status", CHAT, EMBED).ret
    assert 0 == Run("preload", f"{CHAT},num_ctx=512", EMBED, "--keep-alive=9m20s").ret
    assert 0 == Run("preload", EMBED, "--keep-alive=-1").ret
    run = Run("status", EMBED.upper(), f"{CHAT},num_ctx=1024")
    assert (0, "") == (run.ret, run.err)
    *_, embed, chat = run.lines
    assert re.fullmatch(r"✓ EMBED:A( +[\d.]+ [kM]B)? +\d+ +Forever", embed)
    assert re.fullmatch(
        r"✓ llama3\.2:1b( +[\d.]+ [kM]B)? +512 \(wanted 1024\) +9 minutes from now", chat
    )
    loads = server.loads()
    assert 0 == Run("unload", EMBED).ret
    assert [CHAT] == server.loaded()
    run = Run("unload", "--all")
    assert (0, 0) == (run.ret, len(server.loaded()))
    assert run.lines[-1].startswith("✓ llama3.2:1b   unloaded")
    # Neither looking nor unloading loads anything.
    assert loads == server.loads()


def test_unload_of_what_is_cold_loads_nothing(server: RealServer) -> None:
    run = Run("unload", CHAT, EMBED)
    assert (0, 2) == (run.ret, run.out.count("was not loaded"))
    run = Run("unload", "lama3.2:1b")
    assert 1 == run.ret
    assert f"neither loaded nor local; did you mean {CHAT}?" in run.out
    assert 0 == server.loads()


def test_cache_keys_before_and_after_a_pull(server: RealServer, registry: Registry) -> None:
    new = registry.name("agent")
    names = ["cache-key", CHAT, f"{new},insecure=true"]
    before = Run(*names).out
    assert (1, "") == ((early := Run(*names, "--digests")).ret, early.out)
    assert f": not on {server.url}" in early.err
    assert 0 == Run("pull", f"{new},insecure=true").ret
    assert before == Run(*names).out
    after = Run(*names, "--digests").out
    assert after.startswith(f"{before.strip()}-")
    server.delete(CHAT)
    server.post("/api/copy", {"source": new, "destination": CHAT})
    moved = Run(*names, "--digests").out
    assert after != moved
    assert moved.startswith(f"{before.strip()}-")


def test_the_demo_shows_the_real_thing(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("demo")
    assert (0, "") == (run.ret, run.err), run.out
    assert "emulator" not in run.out
    assert run.lines[0].endswith(f" at {server.url} (from OLLAMA_HOST).")
    assert run.lines[1].startswith(f"Model: {CHAT} (")
    assert "-- with the plugin, cold (toy model)" in run.lines
    assert [] == list(Path.cwd().iterdir())
    assert re.search("✓ llama3.2:1b   (already )?loaded", run.out)
    assert (
        "llama3.2:1b was gone (unloaded, or the server was restarted), and loaded again" in run.out
    )
    table = run.out.partition("whole run\n")[2].partition("\n\n")[0]
    assert 4 == len(table.splitlines())
    # Once for the disk cache, cold thrice, and once after the eviction; two workers share a load.
    assert (5, [CHAT]) == (server.loads(), server.loaded())
    assert server.calls("/api/pull") == 2, "those of this test alone"


def test_the_state_as_json(server: RealServer) -> None:
    assert 0 == Run("preload", CHAT).ret
    (chat,) = json.loads(Run("status", "--json").out)["models"]
    (stored,) = (one for one in server.get("/api/tags")["models"] if one["name"] == CHAT)
    assert (CHAT, "loaded", stored["digest"]) == (chat["model"], chat["state"], chat["digest"])
    assert 590 < chat["keep_alive_s"] <= 601
