"""Each sentence of the summary: where it is true, and where it must not stand."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_warmup.ollama.responses import ModelInfo
from pytest_ollama_warmup.report.findings import Run, findings
from pytest_ollama_warmup.warmup.memory import Memory
from pytest_ollama_warmup.warmup.outcome import Known, Outcome, Reload, Step
from pytest_ollama_warmup.warmup.usage import Gone, Switch, Usage, Use
from tests.sections import unnamed

if TYPE_CHECKING:
    from pytest_ollama_warmup.warmup.usage import Cause

LOAD = Step(kind="load", start=0.0, seconds=2.0)
A = Outcome(key="a", model="a:1", status="ready", steps=(LOAD,), context_length=4096)
B = A._replace(key="b", model="b:1")
RUN = Run({})


def use(
    model: str = "a:1", test: str = "t", at: float = 5.0, context: int = 4096, key: str = ""
) -> Use:
    return Use(model, "", context, at, (test,) if test else (), frozenset([key] if key else []))


def gone(cause: Cause, *tests: str, at: float = 1.0, by: tuple[str, ...] = ()) -> Gone:
    return Gone("a:1", "", 4096, at, cause, tests, by, frozenset(["a:1", *by]))


def said(seen: Memory, run: Run) -> list[str]:
    """Return the findings without the sections that they name."""
    return [unnamed(line) for line in findings(seen, run)]


def reload(at: float = 2.0, test: str = "u") -> Reload:
    return Reload(test=test, by="main", start=0.0, at=at, seconds=1.5)


def memory(*outcomes: Outcome, known: Known | None = None, **usage: Any) -> Memory:
    ours = {one.key: one for one in outcomes or (A,)}
    return Memory(
        "", Usage(**{"kept": 3, **usage}), {} if known is None else {known.key: known}, ours
    )


def reloaded(cause: Cause, *tests: str, by: tuple[str, ...] = (), **usage: Any) -> Memory:
    known = Known(key="a", model="a:1", reloads=(reload(),))
    return memory(known=known, gone=[gone(cause, *tests, by=by)], **usage)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (
            reloaded("evicted", "t", by=("b:1",)),
            "a:1 was evicted during t when b:1 was loaded, and loaded again before u (1.5 s).",
        ),
        (
            reloaded("evicted", by=("b:1", "c:1")),
            "a:1 was evicted when b:1 and c:1 were loaded, and loaded again before u (1.5 s).",
        ),
        (
            reloaded("displaced", "t", by=("b:1",)),
            "a:1 was gone during t when b:1 was loaded (evicted, or unloaded by somebody), and "
            "loaded again before u (1.5 s).",
        ),
        (
            reloaded("expired"),
            "a:1 was no longer loaded, as its keep-alive had ended, and loaded again before u "
            "(1.5 s).\nRaise --ollama-keep-alive.",
        ),
        (
            reloaded("restarted"),
            "a:1 was gone when the server answered again, and loaded again before u (1.5 s).\nThe "
            "server's log says why.",
        ),
        (
            reloaded("unloaded", "t"),
            "a:1 was unloaded during t, and loaded again before u (1.5 s).",
        ),
        (
            reloaded("gone", "t", "v"),
            "a:1 was gone (unloaded, or the server was restarted), and loaded again before u "
            "(1.5 s).",
        ),
        (
            memory(gone=[gone("unloaded", "t")], uses=[use(at=3.0)]),
            "a:1 was unloaded during t, and loaded again by tests 1 time.",
        ),
        # Nobody has seen how it went.
        (
            memory(known=Known(key="a", model="a:1", reloads=(reload(),))),
            "a:1 was gone (unloaded, or the server was restarted), and loaded again before u "
            "(1.5 s).",
        ),
    ],
)
def test_why_a_model_was_loaded_again(seen: Memory, line: str) -> None:
    assert [line] == said(seen, RUN)


@pytest.mark.parametrize(
    "seen",
    [
        memory(),
        # It did not come back, so that it has cost nothing.
        memory(gone=[gone("evicted", "t", by=("b:1",))]),
        # Somebody else has used it since, and no test.
        memory(gone=[gone("unloaded", "t")], uses=[use(test="", at=3.0)]),
        # It was used before it went.
        memory(gone=[gone("unloaded", "t")], uses=[use(at=0.5)]),
    ],
)
def test_what_has_cost_nothing_is_not_said(seen: Memory) -> None:
    assert [] == said(seen, RUN)


@pytest.mark.parametrize(
    ("more", "outcomes", "cause"),
    [
        # Seen in no other interval: it may be somebody else's, who came while t unloaded a:1.
        ([], (A,), "displaced"),
        ([use("b:1", "t", at=1.0)], (A,), "displaced"),
        # It is the run's, or another test has used it too.
        ([], (A, B), "evicted"),
        ([use("b:1", "t", at=1.0), use("b:1", "v", at=7.0)], (A,), "evicted"),
        # Of two tests at once nobody knows; and it was used while no test ran.
        ([Use("b:1", "", 4096, 7.0, ("v", "w"), frozenset())], (A,), "displaced"),
        ([use("b:1", "v", at=7.0), use("b:1", "", at=8.0)], (A,), "displaced"),
    ],
)
def test_evicted_is_said_only_for_a_model_that_tests_use(
    more: list[Use], outcomes: tuple[Outcome, ...], cause: Cause
) -> None:
    seen = memory(*outcomes, gone=[gone("evicted", "t", by=("b:1",))], uses=more)
    seen.judge_gone(lambda name: None)
    assert [cause] == [one.cause for one in seen.usage.gone]
    assert (cause == "evicted") == bool(seen.usage.crowds)


MORE = [use(f"{name}:1") for name in "abcd"]
ROOM = "raise the server's OLLAMA_MAX_LOADED_MODELS."


@pytest.mark.parametrize(
    ("run", "kept", "cure"),
    [
        (RUN, 3, f"\nTo avoid that, use --ollama-group-by-model, or {ROOM}"),
        (Run({}, marked=False), 3, f"\nTo avoid that, {ROOM}"),
        (Run({}, grouped=True), 3, f"\nTo avoid that, {ROOM}"),
        # It kept as many as the tests use: room for more would not help.
        (RUN, 4, ""),
    ],
)
def test_only_a_cure_that_can_work_is_offered(run: Run, kept: int, cure: str) -> None:
    outcomes = [A._replace(key=name, model=f"{name}:1") for name in "abcd"]
    known = Known(key="a", model="a:1", reloads=(reload(),))
    evicted = gone("evicted", "t", by=("d:1",))
    seen = memory(*outcomes, known=known, gone=[evicted], uses=MORE, kept=kept)
    start = "a:1 was evicted during t when d:1 was loaded, and loaded again before u (1.5 s)."
    assert [f"{start}{cure}"] == said(seen, run)


@pytest.mark.parametrize(
    ("rests", "line"),
    [
        ("often", "a:1 was gone 1 time within 5 minutes; the plugin stopped reloading it."),
        ("unused", "a:1 was gone again before a test used it; the plugin stopped reloading it."),
        ("busy", ""),
        ("", ""),
    ],
)
def test_that_a_model_is_no_longer_loaded_again(rests: Any, line: str) -> None:
    known = Known(key="a", model="a:1", reloads=(reload(),), rests=rests)
    stopped = [one for one in said(memory(known=known), RUN) if "stopped" in one]
    assert ([line] if line else []) == stopped


def switch(before: int, after: int, *tests: str, model: str = "a:1") -> Switch:
    return Switch(model, "", before, after, tests, frozenset())


LISTED = A._replace(options=(("num_ctx", 4096),))


@pytest.mark.parametrize(
    ("seen", "run", "line"),
    [
        (
            memory(switches=[switch(4096, 8192, "t")], uses=[use(context=8192)]),
            Run({"a": 8192}),
            "a:1 was loaded with num_ctx 4096 (server default), and during t with 8192: 1 reload, "
            "about 2 s.\nThe next run here loads it so. Elsewhere, list a:1,num_ctx=8192.",
        ),
        # Not written, or another one: nothing is promised.
        (
            memory(switches=[switch(4096, 8192, "t")], uses=[use(context=8192)]),
            Run({"a": 2048}),
            "a:1 was loaded with num_ctx 4096 (server default), and during t with 8192: 1 reload, "
            "about 2 s.\nList a:1,num_ctx=8192.",
        ),
        (
            memory(LISTED, switches=[switch(4096, 8192, "t", "u")], uses=[use(context=8192)]),
            RUN,
            "a:1 was loaded with num_ctx 4096 (listed), and by tests with 8192: 1 reload, about "
            "2 s.\nList a:1,num_ctx=8192, or have the tests send num_ctx 4096: pass "
            "options=ollama_options.",
        ),
        (
            memory(
                A._replace(learned=4096), switches=[switch(4096, 512, "t")], uses=[use(context=512)]
            ),
            RUN,
            "a:1 was loaded with num_ctx 4096 (learned), and during t with 512: 1 reload, about "
            "2 s.\nList a:1,num_ctx=512.",
        ),
        (
            memory(
                A._replace(already_loaded=True),
                switches=[switch(4096, 512, "t")],
                uses=[use(context=512)],
            ),
            RUN,
            "a:1 was loaded with num_ctx 4096 (already loaded), and during t with 512: 1 reload, about "
            "2 s.\nList a:1,num_ctx=512.",
        ),
        (
            memory(
                switches=[switch(4096, 8192, "t"), switch(8192, 4096, "u")],
                uses=[use(context=8192), use(context=4096)],
            ),
            RUN,
            "a:1 was loaded with num_ctx 4096 and 8192 in turn: 2 reloads, about 4 s.\nIf these "
            "come from your tests, send the same num_ctx in each: pass options=ollama_options.",
        ),
    ],
)
def test_what_another_context_cost(seen: Memory, run: Run, line: str) -> None:
    assert [line] == said(seen, run)


@pytest.mark.parametrize(
    "seen",
    [
        memory(uses=[use(context=4096)]),
        # Nobody's: somebody else has loaded it otherwise.
        memory(switches=[switch(4096, 8192)]),
        memory(B, switches=[switch(4096, 8192, "t")]),
    ],
)
def test_a_context_that_no_test_has_changed_is_not_mentioned(seen: Memory) -> None:
    assert [] == said(seen, RUN)


def test_variants_are_told_with_what_they_cost() -> None:
    small = A._replace(key="a,num_ctx=512", options=(("num_ctx", 512),))
    seen = memory(A, small, switches=[switch(4096, 512, "t"), switch(512, 4096, "u")])
    start = "a:1 is wanted with num_ctx 512 and 4096: 2 reloads, about 4 s."
    assert [f"{start}\n--ollama-group-by-model makes it one for each."] == said(seen, RUN)
    assert [start] == said(seen, Run({}, grouped=True))
    assert [] == said(memory(A, small), RUN)


def of_weights(model: str, key: str = "", parameters: str = "") -> Outcome:
    return A._replace(key=key or model, model=model, weights="w", parameters=parameters)


def displaced(*names: str, tests: tuple[str, ...] = ("t",)) -> list[Gone]:
    """Each of *names* made room for the next one."""
    return [
        Gone(name, "", 4096, float(at), "evicted", tests, (by,), frozenset([name, by]))
        for at, (name, by) in enumerate(pairwise(names))
    ]


def shared(*outcomes: Outcome, names: tuple[str, ...], **more: Any) -> Memory:
    seen = memory(*outcomes, gone=displaced(*names), kept=1, **more)
    shown = {"d:1": ModelInfo(None, "", "w", "stop     x num_gpu    0"), "e:1": ModelInfo(None, "")}
    seen.judge_gone(shown.get)
    return seen


SMALL = of_weights("b:1", parameters="temperature 0 num_ctx    1024")
LARGE = of_weights("c:1", parameters="num_ctx    8192 num_batch    64")
COST = "have the same weights, and the server keeps one of them in memory at a time: "
GROUP, MARK = "use --ollama-group-by-model", "mark the tests that use d:1 and "
TO_AVOID = "\nTo avoid that, "


@pytest.mark.parametrize(
    ("seen", "run", "line"),
    [
        (
            shared(of_weights("a:1"), SMALL, names=("a:1", "b:1", "a:1", "b:1")),
            RUN,
            f"a:1 and b:1 {COST}2 reloads, about 4 s.{TO_AVOID}{GROUP}, or send the same num_ctx "
            "with each request to them.",
        ),
        (
            shared(of_weights("a:1"), SMALL, LARGE, names=("a:1", "b:1", "c:1", "a:1")),
            Run({}, grouped=True),
            f"a:1, b:1 and c:1 {COST}1 reload, about 2 s.{TO_AVOID}send the same num_ctx and "
            "num_batch with each request to them.",
        ),
        # Nothing that a request could say: an adapter.
        (
            shared(of_weights("a:1"), of_weights("b:1"), names=("a:1", "b:1", "a:1")),
            RUN,
            f"a:1 and b:1 {COST}1 reload, about 2 s.{TO_AVOID}{GROUP}.",
        ),
        (
            shared(of_weights("a:1"), of_weights("b:1"), names=("a:1", "b:1", "a:1")),
            Run({}, marked=False),
            f"a:1 and b:1 {COST}1 reload, about 2 s.",
        ),
        # A test uses it, and nobody lists it.
        (
            shared(of_weights("a:1"), names=("a:1", "d:1", "a:1"), uses=[use("d:1", "t")]),
            RUN,
            f"a:1 and d:1 {COST}1 reload, about 2 s.{TO_AVOID}{MARK}{GROUP}, or send the same "
            "num_gpu with each request to them.",
        ),
        # Somebody else uses it too.
        (
            shared(
                of_weights("a:1"),
                names=("a:1", "d:1", "a:1"),
                uses=[use("d:1", "t"), use("d:1", "")],
            ),
            RUN,
            f"a:1 and d:1 {COST}1 reload, about 2 s.",
        ),
    ],
)
def test_models_of_equal_weights_are_said_once_with_cures_that_can_work(
    seen: Memory, run: Run, line: str
) -> None:
    assert [line] == said(seen, run)
    assert [] == seen.usage.crowds


@pytest.mark.parametrize(
    "seen",
    [
        # Each of them was loaded once.
        shared(of_weights("a:1"), SMALL, LARGE, names=("a:1", "b:1", "c:1")),
        # Other weights, or unknown ones: that was for want of room.
        shared(of_weights("a:1"), B._replace(weights="v"), names=("a:1", "b:1", "a:1")),
        shared(of_weights("a:1"), names=("a:1", "e:1", "a:1")),
        shared(of_weights("a:1"), names=("a:1", "x:1", "a:1")),
    ],
)
def test_of_equal_weights_nothing_is_said_without_cost_or_proof(seen: Memory) -> None:
    assert not any("weights" in line for line in said(seen, RUN))


def test_models_of_equal_weights_need_one_place() -> None:
    others = [A._replace(key=name, model=f"{name}:1", weights=name) for name in "xyz"]
    assert 4 == memory(of_weights("a:1"), SMALL, LARGE, *others).number_needed


UNLISTED = (
    "c:1 was used during t and 1 more, and is not listed.\nIf these tests use it, list it or mark "
    "the tests, so that it is loaded before."
)
UNCLEAR = (
    "c:1 was used while tests ran, and is not listed.\nIf your tests use it, list it or mark the "
    "tests, so that it is loaded before."
)
SEVERAL = (
    "c:1 and d:1 were used during t, and are not listed.\nIf these tests use them, list them or "
    "mark the tests, so that they are loaded before."
)


@pytest.mark.parametrize(
    ("uses", "lines"),
    [
        ([use("c:1", "t"), use("c:1", "u"), use("c:1", "u")], [UNLISTED]),
        ([use("d:1", "t"), use("c:1", "t")], [SEVERAL]),
        ([use("a:1", "t")], []),
        # At another time it was used while no test ran: by somebody else, maybe always.
        ([use("c:1", "t"), use("c:1", "u"), use("c:1", "")], []),
        # Two tests at the same time: nobody knows whose.
        ([Use("c:1", "", 0, 1.0, ("t", "u"), frozenset())], [UNCLEAR]),
        ([Use("c:1", "", 0, 1.0, ("t", "u"), frozenset()), use("c:1", "")], []),
    ],
)
def test_models_that_nobody_listed(uses: list[Use], lines: list[str]) -> None:
    assert lines == said(memory(uses=uses), RUN)
