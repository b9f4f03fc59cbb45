"""What the looks of a run prove, and what they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_warmup.ollama.responses import LoadedModel
from pytest_ollama_warmup.warmup.looks import Look, LookLog, Seen, read_looks
from pytest_ollama_warmup.warmup.run_directory import HostDirectory
from pytest_ollama_warmup.warmup.usage import Cause, usage_of, uses_by_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_ollama_warmup.warmup.looks import When

Loaded = dict[str, Seen]


def seen(expires: int, context: int = 4096, ends: float | None = 1000.0) -> Seen:
    return Seen("d", context, str(expires), ends)


A1, A2, A3 = (seen(number) for number in (1, 2, 3))


def look(
    at: float,
    when: When,
    test: str = "",
    loaded: Loaded | None = None,
    *,
    by: str = "main",
    keys: Iterable[str] = ("a",),
    took: float = 0.001,
    lost: bool = False,
) -> Look:
    return Look(
        by=by,
        sent=at,
        got=at + took,
        when=when,
        tests=(test,) if test else (),
        keys=tuple(keys),
        loaded=loaded,
        lost=lost,
    )


def around(test: str, begin: float, before: Loaded, after: Loaded, **more: str) -> list[Look]:
    """The looks before and after a test that takes a second."""
    by = more.get("by", "main")
    first = look(begin, "before", test, before, by=by)
    return [first, look(begin + 1, "after", test, after, by=by)]


def in_order(*looks: list[Look]) -> list[Look]:
    return sorted((one for each in looks for one in each), key=lambda one: one.got)


# Uses


def test_a_model_whose_end_has_moved_was_used_by_the_test_between() -> None:
    usage = usage_of(around("t", 1.0, {"a": A1}, {"a": A2}))
    (use,) = usage.uses
    assert ("a", 4096, ("t",), frozenset("a")) == (use.model, use.context, use.tests, use.keys)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": A1}, {"a": A1}),
        # Servers that do not tell: nothing is concluded.
        ({"a": Seen("d", 0, "", None)}, {"a": Seen("d", 0, "", None)}),
        ({}, {}),
        # Only by our own clock it ends at another time.
        ({"a": seen(1, ends=5.0)}, {"a": seen(1, ends=6.0)}),
    ],
)
def test_what_has_not_changed_was_not_used(before: Loaded, after: Loaded) -> None:
    usage = usage_of(around("t", 1.0, before, after))
    assert ([], [], []) == (usage.uses, usage.switches, usage.gone)


def test_a_model_that_has_come_was_used() -> None:
    usage = usage_of(around("t", 1.0, {}, {"a": A1}))
    assert [("a", ("t",))] == [(use.model, use.tests) for use in usage.uses]


def test_what_the_plugin_itself_has_asked_for_is_no_use() -> None:
    own = Look(by="main", sent=0.5, got=1.5, when="own", keys=("a",))
    looks = in_order(around("t", 1.0, {}, {"a": A1, "b": A1}), [own])
    assert ["b"] == [use.model for use in usage_of(looks).uses]


@pytest.mark.parametrize(("margin", "used"), [(0.005, False), (0.5, True)])
def test_the_end_of_an_own_request_may_be_noted_late(margin: float, used: bool) -> None:
    own = Look(by="main", sent=0.1, got=1.0 - margin, when="own", keys=("a",))
    looks = in_order([own], around("t", 1.0, {"a": A1}, {"a": A2}))
    assert used == bool(usage_of(looks).uses)


def test_a_reload_just_after_an_own_request_is_the_tests() -> None:
    own = Look(by="main", sent=0.1, got=0.999, when="own", keys=("a",))
    looks = in_order([own], around("t", 1.0, {"a": A1}, {"a": seen(2, 8192)}))
    usage = usage_of(looks)
    assert [(4096, 8192, ("t",))] == [(one.before, one.after, one.tests) for one in usage.switches]
    assert [8192] == [use.context for use in usage.uses]


def test_of_two_tests_at_the_same_time_nobody_knows_whose_use_it_was() -> None:
    looks = in_order(
        around("t", 1.0, {"a": A1}, {"a": A2}, by="gw0"),
        around("u", 1.2, {"a": A1}, {"a": A2}, by="gw1"),
    )
    assert [("t", "u")] == [use.tests for use in usage_of(looks).uses]


def test_two_workers_that_see_one_reload_count_it_once() -> None:
    other = {"a": seen(2, 8192)}
    looks = in_order(
        around("t", 1.0, {"a": A1}, other, by="gw0"),
        around("u", 1.2, {"a": A1}, other, by="gw1"),
    )
    assert 1 == len(usage_of(looks).switches)


def test_a_use_between_tests_is_nobodys() -> None:
    looks = in_order(around("t", 1.0, {"a": A1}, {"a": A1}), around("u", 5.0, {"a": A2}, {"a": A2}))
    (use,) = usage_of(looks).uses
    assert () == use.tests


def test_the_end_of_a_tests_last_request_may_be_noted_late() -> None:
    looks = in_order(
        around("t", 1.0, {"a": A1}, {"a": A1}), around("u", 2.004, {"a": A2}, {"a": A2})
    )
    (use,) = usage_of(looks).uses
    assert ("t",) == use.tests


def test_a_model_that_has_come_is_not_put_on_the_test_before() -> None:
    looks = in_order(around("t", 1.0, {}, {}), around("u", 2.004, {"a": A1}, {"a": A1}))
    (use,) = usage_of(looks).uses
    assert () == use.tests


def test_of_looks_that_overlap_one_counts() -> None:
    """Whichever the server answered first: the older state must not look like a change."""
    looks = [
        look(1.0, "before", "t", {"a": A2}, by="gw0"),
        look(1.0005, "before", "u", {"a": A1}, by="gw1", took=0.002),
        look(2.0, "after", "t", {"a": A2}, by="gw0"),
    ]
    assert [] == usage_of(looks).uses


def test_the_last_look_counts_though_one_overlaps_that_saw_no_change() -> None:
    """As where a worker waits long for the answer, and the last test of another ends meanwhile."""
    bigger = {"a": seen(2, context=8192)}
    looks = [
        *around("t", 1.0, {"a": A1}, {"a": A1}, by="gw0"),
        look(2.0, "before", "last", {"a": A1}, by="gw1"),
        look(2.5, "after", "u", {"a": A1}, by="gw0", took=0.2),
        look(2.6, "after", "last", bigger, by="gw1", took=0.2),
    ]
    (switch,) = usage_of(looks).switches
    assert (4096, 8192, ("last",)) == (switch.before, switch.after, switch.tests)


def test_a_state_that_was_read_before_another_one_and_came_later_is_no_change() -> None:
    """The look that saw no change was answered first, though it was over last."""
    looks = [
        look(1.0, "before", "t", {"a": A1}, by="gw0"),
        look(2.1, "after", "t", {"a": A2}, by="gw0"),
        look(2.0, "before", "u", {"a": A1}, by="gw1", took=0.2),
        look(3.0, "after", "u", {"a": A2}, by="gw1"),
    ]
    (use,) = usage_of(looks).uses
    assert ("t",) == use.tests


def test_a_worker_that_was_killed_leaves_its_test_open() -> None:
    looks = [
        look(1.0, "before", "killed", {"a": A1}, by="gw0"),
        *around("t", 2.0, {"a": A1}, {"a": A2}, by="gw1"),
    ]
    assert [("killed", "t")] == [use.tests for use in usage_of(looks).uses]


def test_between_looks_of_a_suite_that_is_not_marked_the_one_test_is_named() -> None:
    looks = [
        look(1.0, "between", "", {"a": A1}),
        look(2.0, "between", "t", {"a": A2}),
        Look(by="main", sent=3, got=3.1, when="between", tests=("u", "v"), loaded={"a": A3}),
    ]
    assert [("t",), ("u", "v")] == [use.tests for use in usage_of(looks).uses]


# Reloads


def test_a_reload_that_another_worker_looks_into_is_a_reload_and_no_loss() -> None:
    looks = in_order(
        around("t", 1.0, {"a": A1}, {"a": seen(2, 8192)}, by="gw0"),
        [look(1.5, "before", "u", {}, by="gw1")],
    )
    usage = usage_of(looks)
    assert [(4096, 8192)] == [(one.before, one.after) for one in usage.switches]
    assert [] == usage.gone


# Gone


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        ({"a": A1}, {}, "gone"),
        ({"a": A1, "b": A1}, {"b": A1}, "unloaded"),
        # All at once: that can be a restart.
        ({"a": A1, "b": A1}, {}, "gone"),
        ({"a": A1, "b": A1}, {"b": A1, "c": A1}, "evicted"),
        ({"a": seen(1, ends=2.0)}, {}, "expired"),
        # Its keep-alive was over, and another one came: it can have been either.
        ({"a": seen(1, ends=2.0)}, {"b": A1}, "gone"),
        ({"a": seen(1, ends=None)}, {}, "gone"),
    ],
)
def test_a_cause_is_named_where_it_is_proved(before: Loaded, after: Loaded, cause: Cause) -> None:
    gone = usage_of(around("t", 1.0, before, after)).gone
    assert cause == gone[0].cause
    assert "a" == gone[0].model


def test_a_model_of_somebody_else_that_was_there_before_evicts_nothing() -> None:
    looks = around("t", 1.0, {"a": A1, "theirs": A1}, {"theirs": A1})
    assert ["unloaded"] == [one.cause for one in usage_of(looks).gone]


def test_with_two_tests_at_once_nobody_has_unloaded_it_for_certain() -> None:
    both: Loaded = {"a": A1, "b": A1}
    looks = in_order(
        around("t", 1.0, both, {"b": A1}, by="gw0"), around("u", 1.2, both, {"b": A1}, by="gw1")
    )
    assert ["gone"] == [one.cause for one in usage_of(looks).gone]


def test_models_that_were_together_before_did_not_lack_room() -> None:
    looks = in_order(
        around("t", 1.0, {"a": A1, "b": A1}, {"a": A1}), around("u", 3.0, {"a": A1}, {"b": A2})
    )
    usage = usage_of(looks)
    assert ["unloaded", "gone"] == [one.cause for one in usage.gone]
    assert [] == usage.crowds
    assert 2 == usage.kept


def test_what_did_not_fit_is_known_afterwards() -> None:
    usage = usage_of(around("t", 1.0, {"a": A1, "b": A1}, {"b": A1, "c": A1}))
    assert [{"a", "b", "c"}] == usage.crowds
    assert usage.fits(frozenset("bc"))
    assert not usage.fits(frozenset("abc"))


@pytest.mark.parametrize("end", [2.5, 4.0], ids=["inside-both", "after"])
def test_what_made_room_is_known_where_what_it_made_room_for_is_listed_later(end: float) -> None:
    # The test that loads c runs from 1 to 3; another worker looks at 2, when a has gone for it.
    both: Loaded = {"a": A1, "b": A1}
    looks = in_order(
        [look(1.0, "before", "t", both, by="gw0"), look(3.0, "after", "t", {"c": A1}, by="gw0")],
        [
            look(2.0, "before", "u", {"b": A1}, by="gw1"),
            look(end, "after", "u", {"c": A1}, by="gw1"),
        ],
    )
    gone = {one.model: one for one in usage_of(looks).gone}
    assert ("evicted", ("c",), frozenset("abc")) == (gone["a"].cause, gone["a"].by, gone["a"].crowd)


def test_what_a_test_unloaded_did_not_make_room_for_a_model_of_the_next() -> None:
    both: Loaded = {"a": A1, "b": A1}
    looks = in_order(
        around("t", 1.0, both, {"b": A1}), around("u", 3.0, {"b": A1}, {"b": A1, "c": A1})
    )
    assert [("unloaded", ())] == [(one.cause, one.by) for one in usage_of(looks).gone]


def test_a_server_that_did_not_answer_was_restarted() -> None:
    looks = [
        *around("t", 1.0, {"a": A1}, {"a": A1}),
        look(2.5, "own", lost=True, keys=()),
        *around("u", 3.0, {}, {}),
    ]
    assert ["restarted"] == [one.cause for one in usage_of(looks).gone]


# Whose use


def test_a_use_that_may_belong_to_two_variants_belongs_to_none() -> None:
    def keys_of(name: str, digest: str) -> frozenset[str]:
        return frozenset({"a", "a,num_ctx=512"})

    first = around("t", 1.0, {"a": A1}, {"a": A2})
    usage = usage_of(first)
    assert ["a"] == list(uses_by_key(usage, keys_of))
    other = [
        look(1.1, "before", "u", {"a": A1}, by="gw1", keys=["a,num_ctx=512"]),
        look(2.1, "after", "u", {"a": A2}, by="gw1", keys=["a,num_ctx=512"]),
    ]
    assert {} == uses_by_key(usage_of(in_order(first, other)), keys_of)


# The log


def test_what_is_written_is_read_again_also_beside_half_a_line(tmp_path: Path) -> None:
    log = LookLog(HostDirectory(tmp_path, 1.0), "gw0")
    log.write(
        "before", 0.0, tests=["t"], keys=["a"], loaded=[LoadedModel("a", "d", 1, 512, 5.0, "e")]
    )
    log.write("after", 1.0, tests=["t"], keys=["a"], lost=True)
    with (tmp_path / "looks-gw1.jsonl").open("w") as file:
        file.write('{"by": "gw1", "sent"')
    first, second = read_looks(HostDirectory(tmp_path, 1.0))
    assert {"a": Seen("d", 512, "e", first.got + 5.0)} == first.loaded
    assert ("before", ("t",), ("a",)) == (first.when, first.tests, first.keys)
    assert (None, True) == (second.loaded, second.lost)


def test_a_directory_that_is_gone_costs_no_test(tmp_path: Path) -> None:
    LookLog(HostDirectory(tmp_path / "missing", 1.0), "gw0").write("before", 0.0)


STATES = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(
        Seen,
        st.just("d"),
        st.sampled_from([0, 512, 4096]),
        st.sampled_from(["", "1", "2"]),
        st.none() | st.floats(-1, 99),
    ),
)
LOOKS = st.builds(
    Look,
    by=st.sampled_from(["gw0", "gw1"]),
    sent=st.floats(0, 10),
    got=st.floats(0, 10),
    when=st.sampled_from(["before", "after", "between", "own"]),
    tests=st.sampled_from([(), ("t",), ("u",), ("t", "u")]),
    keys=st.sampled_from([(), ("a",), ("b",)]),
    loaded=st.none() | STATES,
    lost=st.booleans(),
)


@given(st.lists(LOOKS))
def test_whatever_was_seen_can_be_read(looks: list[Look]) -> None:
    usage = usage_of(sorted(looks, key=lambda one: one.got))
    assert all(one.cause for one in usage.gone)
    assert usage.kept <= 3
