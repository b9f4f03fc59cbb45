"""How several servers are shared out among workers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_warmup.config.settings import Place
from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.warmup.hosts import ask, moved, share_out
from pytest_ollama_warmup.warmup.run_directory import RunDirectory
from pytest_ollama_warmup.warmup.warmer import Process, Warmer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("workers", "answering", "places"),
    [
        (4, "abc", "abca"),
        (2, "abc", "ab"),
        (3, "ac", "acc"),
        (6, "ac", "accaac"),
        (5, "b", "bbbbb"),
    ],
)
def test_worker_i_has_host_i_mod_n_or_another_that_answers(
    workers: int, answering: str, places: str
) -> None:
    assert list(places) == share_out("abc", workers, answering)


@given(hosts=st.integers(1, 8), workers=st.integers(1, 40), data=st.data())
def test_only_those_of_hosts_that_are_down_move(
    hosts: int, workers: int, data: st.DataObject
) -> None:
    names = [f"h{number}" for number in range(hosts)]
    up = data.draw(st.sets(st.sampled_from(names), min_size=1))
    places = share_out(names, workers, up)
    assert workers == len(places)
    for number, place in enumerate(places):
        own = names[number % hosts]
        assert place == own if own in up else place in up


def test_the_workers_of_one_host_are_spread_over_the_others() -> None:
    assert {"a": 9, "c": 9} == Counter(share_out("abc", 18, "ac"))
    assert "gw1 uses c, gw4 uses a." == moved("b", "abc", share_out("abc", 6, "ac"))


def test_a_place_survives_the_environment() -> None:
    assert Place(3, "http://a:1") == Place.read(str(Place(3, "http://a:1")))


@pytest.mark.parametrize("text", ["", "3", "3 ", "x http://a:1", "http://a:1"])
def test_what_is_no_place_is_none(text: str) -> None:
    assert Place.read(text) is None


def test_whatever_goes_wrong_in_a_thread_is_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(Sources(SimpleNamespace(ollama_warmup_host="a"), {}))
    warmer = Warmer(settings, RunDirectory(tmp_path, 60), Process())
    monkeypatch.setattr(warmer, "wait_until_ready", lambda: 1 / 0)
    found = ask([warmer], print, all_of_them=True)["http://a:11434"]
    assert ("failed", "http://a:11434") == (found.status, found.host)
    assert (
        "cannot be asked: ZeroDivisionError: division by zero. [cannot-ask]\nDoes the suite"
        in found.error
    )
