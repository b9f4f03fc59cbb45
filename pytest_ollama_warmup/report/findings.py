"""What happened to models during a run: what it cost, why, and how to avoid it.

Each sentence says only what was seen, and offers only what can help in this run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.config.model_specs import RUNNER_KEYS
from pytest_ollama_warmup.text import at, clean, count, each_of, explained, first_of, seconds
from pytest_ollama_warmup.warmup.room_in_memory import runs_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ollama_warmup.warmup.memory import Memory
    from pytest_ollama_warmup.warmup.outcome import Outcome, Reload
    from pytest_ollama_warmup.warmup.usage import Cause, Gone

RAISE_MAX = "raise the server's OLLAMA_MAX_LOADED_MODELS"


class Run(NamedTuple):
    """What of a run decides which advice can help.

    *learned* are the contexts that the next run will use, by key; *grouped* is whether sets of
    models take turns, *marked* whether tests say which models they need.
    """

    learned: Mapping[str, int]
    grouped: bool = False
    marked: bool = True


def findings(memory: Memory, run: Run) -> list[str]:
    """Return a text for each thing that a user can do something about.

    Its first line says what was seen, the next one what to do about it.
    """
    lines: list[str] = []
    for key, outcome in memory.outcomes.items():
        lines += _reloaded(memory, run, key, at(outcome.title, memory.host))
        if line := _contexts(memory, run, key, outcome):
            lines.append(line)
    lines += _variants(memory, run)
    said = dict(_sharing(memory, run))
    lines += said.values()
    by_tests: dict[tuple[str, ...], list[str]] = {}
    for name, tests in sorted(memory.unlisted.items()):
        if not any(name in names for names in said):
            by_tests.setdefault(tuple(tests), []).append(at(clean(name, 100), memory.host))
    lines += [_unlisted(names, [*tests]) for tests, names in by_tests.items()]
    return lines


def _reloaded(memory: Memory, run: Run, key: str, name: str) -> Iterator[str]:
    """Say why a model was gone, and who loaded it again."""
    by_cause: dict[Cause, list[tuple[Gone | None, Reload | None]]] = {}
    for gone, reload in memory.comebacks(key):
        by_cause.setdefault(gone.cause if gone else "gone", []).append((gone, reload))
    # That is said of all variants together.
    by_cause.pop("variant", None)
    for cause, comebacks in by_cause.items():
        reloads = [reload for _, reload in comebacks if reload is not None]
        what = _what(cause, [gone for gone, _ in comebacks if gone is not None])
        parts = []
        if reloads:
            took = seconds(sum(reload.seconds for reload in reloads))
            parts.append(
                f"loaded again before {first_of([reload.test for reload in reloads])} ({took})"
            )
        if by_tests := len(comebacks) - len(reloads):
            parts.append(f"loaded again by tests {count(by_tests, 'time')}")
        yield explained(
            f"{name} was {what}, and {' and '.join(parts)}.{_cure(memory, run, cause)}", cause
        )
    ledger = memory.known.get(key)
    if ledger is not None and ledger.rests == "often":
        often = f"{count(len(ledger.reloads), 'time')} within 5 minutes"
        yield explained(
            f"{name} was gone {often}; the plugin stopped reloading it.", "stopped-reloading"
        )
    elif ledger is not None and ledger.rests == "unused":
        yield explained(
            f"{name} was gone again before a test used it; the plugin stopped reloading it.",
            "stopped-reloading",
        )


def _what(cause: Cause, gone: list[Gone]) -> str:
    tests = list(
        dict.fromkeys(test for event in gone if len(event.tests) == 1 for test in event.tests)
    )
    during = f" during {first_of(tests)}" if tests else ""
    by = sorted({clean(name, 100) for event in gone for name in event.by})
    came = f"{each_of(by)} {'was' if len(by) == 1 else 'were'} loaded"
    return {
        "evicted": f"evicted{during} when {came}",
        "displaced": f"gone{during} when {came} (evicted, or unloaded by somebody)",
        "expired": "no longer loaded, as its keep-alive had ended",
        "restarted": "gone when the server answered again",
        "unloaded": f"unloaded{during}",
        "gone": "gone (unloaded, or the server was restarted)",
    }[cause]


def _cure(memory: Memory, run: Run, cause: Cause) -> str:
    if cause == "expired":
        return "\nRaise --ollama-keep-alive."
    if cause == "restarted":
        return "\nThe server's log says why."
    # More room helps only where more models are needed than were in memory at most.
    if cause != "evicted" or memory.number_needed <= memory.usage.kept:
        return ""
    if run.grouped or not run.marked:
        return f"\nTo avoid that, {RAISE_MAX}."
    return f"\nTo avoid that, use --ollama-group-by-model, or {RAISE_MAX}."


def _contexts(memory: Memory, run: Run, key: str, outcome: Outcome) -> str:
    """Say that tests use another context than the model was loaded with."""
    switches, uses = memory.switches(key), memory.uses.get(key, [])
    if not (switches and outcome.context_length) or len(_keys_of_model(memory, outcome)) > 1:
        return ""
    # Where the guard has loaded it again there are more than those of the tests.
    reloads = f"{count(len(switches), 'reload')}{_took(len(switches), outcome)}"
    name, first = at(outcome.model, memory.host), outcome.context_length
    used = sorted({use.context for use in uses if use.context})
    if len(used) == 1 and used != [first]:
        (context,) = used
        by = "learned" if outcome.learned else "server default"
        by = "listed" if "num_ctx" in dict(outcome.options) else by
        by = "already loaded" if outcome.already_loaded else by
        spec = f"{outcome.model},num_ctx={context}"
        cure = f"List {spec}."
        if run.learned.get(key) == context:
            cure = f"The next run here loads it so. Elsewhere, list {spec}."
        elif by == "listed":
            cure = (
                f"List {spec}, or have the tests send num_ctx {first}: pass options=ollama_options."
            )
        # Of tests that ran at the same time nobody knows whose it was.
        certain = list(
            dict.fromkeys(switch.tests[0] for switch in switches if len(switch.tests) == 1)
        )
        who = f"during {first_of(certain)}" if certain else "by tests"
        return explained(
            f"{name} was loaded with num_ctx {first} ({by}), and {who} with {context}: "
            f"{reloads}.\n{cure}",
            "other-context-length",
        )
    # Whoever shares the server may have asked for one of them.
    contexts = " and ".join(
        str(length) for length in sorted({switch.after for switch in switches} | {*used})
    )
    return explained(
        f"{name} was loaded with num_ctx {contexts} in turn: {reloads}.\nIf these come from your "
        "tests, send the same num_ctx in each: pass options=ollama_options.",
        "contexts-in-turn",
    )


def _variants(memory: Memory, run: Run) -> Iterator[str]:
    """Say what it cost that tests want one model with several contexts."""
    seen: set[frozenset[str]] = set()
    for outcome in memory.outcomes.values():
        keys = _keys_of_model(memory, outcome)
        switches = memory.switches(outcome.key)
        if len(keys) < 2 or keys in seen or not switches:
            continue
        seen.add(keys)
        contexts = sorted(
            {switch.after for switch in switches} | {switch.before for switch in switches}
        )
        each = " and ".join(str(context) for context in contexts)
        cure = "\n--ollama-group-by-model makes it one for each." if not run.grouped else ""
        yield (
            explained(
                f"{at(outcome.model, memory.host)} is wanted with num_ctx {each}: "
                f"{count(len(switches), 'reload')}{_took(len(switches), outcome)}.{cure}",
                "variants",
            )
        )


def _sharing(memory: Memory, run: Run) -> Iterator[tuple[frozenset[str], str]]:
    """Say what it cost that models with the same weights displace each other, by their names."""
    events: dict[str, list[Gone]] = {}
    for gone in memory.usage.gone:
        if gone.cause == "variant":
            events.setdefault(memory.info(gone.model).weights, []).append(gone)
    for swaps in events.values():
        displaced, reloads = set[str](), 0
        for swap in swaps:
            displaced.add(swap.model)
            reloads += not displaced.isdisjoint(swap.by)
        # Each has to be loaded once.
        if not reloads:
            continue
        names = frozenset(name for swap in swaps for name in (swap.model, *swap.by))
        shown = each_of([at(clean(name, 100), memory.host) for name in sorted(names)])
        loads = [memory.outcomes[key] for name in names for key in memory.keys_of(name, "")]
        took = next(filter(None, (_took(reloads, outcome) for outcome in loads)), "")
        yield (
            names,
            explained(
                f"{shown} have the same weights, and the server keeps one of them in memory at a "
                f"time: {count(reloads, 'reload')}{took}."
                f"{_cure_of_sharing(memory, run, sorted(names))}",
                "variant",
            ),
        )


def _cure_of_sharing(memory: Memory, run: Run, names: list[str]) -> str:
    # What somebody else loads is not for the tests to avoid.
    if not all(memory.is_of_tests(name) for name in names):
        return ""
    cures = []
    if run.marked and not run.grouped:
        unlisted = [clean(name, 100) for name in names if not memory.keys_of(name, "")]
        mark = f"mark the tests that use {each_of(unlisted)} and " if unlisted else ""
        cures.append(f"{mark}use --ollama-group-by-model")
    infos = [runs_with(memory.info(name).parameters, {}) for name in names]
    if keys := [key for key in RUNNER_KEYS if len({info.get(key) for info in infos}) > 1]:
        cures.append(f"send the same {each_of(keys)} with each request to them")
    return f"\nTo avoid that, {', or '.join(cures)}." if cures else ""


def _keys_of_model(memory: Memory, outcome: Outcome) -> frozenset[str]:
    return memory.keys_of(outcome.model, "")


def _took(number: int, outcome: Outcome) -> str:
    load = outcome.step("load")
    return f", about {seconds(number * load.seconds)}" if load and load.seconds >= 0.1 else ""


def _unlisted(names: list[str], tests: list[str]) -> str:
    when = f"during {first_of(tests)}" if tests else "while tests ran"
    which = "these tests" if tests else "your tests"
    was, is_, it = ("was", "is", "it") if len(names) == 1 else ("were", "are", "them")
    return explained(
        f"{each_of(names)} {was} used {when}, and {is_} not listed.\n"
        f"If {which} use {it}, list {it} or mark the tests, so that "
        f"{'it is' if len(names) == 1 else 'they are'} loaded before.",
        "unlisted",
    )
