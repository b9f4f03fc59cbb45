"""Which models a run needs, wanted by whom, and what follows when one cannot be had."""

from __future__ import annotations

import json

import pytest

from pytest_ollama_warmup.config.listed_models import GivenBy, Listed, parse_aliases
from pytest_ollama_warmup.config.model_specs import ModelSpec, parse_specs
from pytest_ollama_warmup.errors import BadSpec, NoModelNamed
from pytest_ollama_warmup.warmup.on_unavailable import decide, decisions
from pytest_ollama_warmup.warmup.plan import (
    SERVER,
    Need,
    Plan,
    Target,
    Want,
    make_plan,
    resolve,
)

GIVEN_BY: list[GivenBy] = ["option", "environment", "configuration", "default"]


def listed(
    text: str = "", given_by: GivenBy = "option", source: str = "--ollama-preload"
) -> Listed:
    return Listed(parse_specs(text, source), source, given_by)


def want(
    text: str = "", test: str = "t.py::test_a", *, fixture: str = "", on_unavailable: str = ""
) -> Want:
    return Want(
        test=test, specs=parse_specs(text, "mark"), fixture=fixture, on_unavailable=on_unavailable
    )


def resolved(asked: Want, models: Listed) -> list[str]:
    return [str(spec) for spec in resolve(asked, models)]


def key(text: str) -> str:
    (spec,) = parse_specs(text, "x")
    return spec.key


def test_a_listed_model_is_found_whatever_its_spelling_and_options() -> None:
    models = listed("a llama3.2:latest,num_ctx=64", "option")
    assert ("--ollama-preload", "option") == models.given(ModelSpec("LLAMA3.2", (("num_ctx", 32),)))
    assert None is models.given(ModelSpec("llama3.2:1b"))


ROLES = Listed(
    parse_specs("llama3.2:1b,num_ctx=64,insecure=true", "--ollama-preload"),
    "--ollama-preload",
    "option",
    (
        *parse_aliases(["chat = llama3.2:1b", "Long=qwen3,num_ctx=128"], "ini", "configuration"),
        *parse_aliases(["pinned=embed@sha256:0A109F42"], "--ollama-alias", "option"),
    ),
)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        # An alias without options has those that are listed for its model.
        ("chat", "llama3.2:1b,num_ctx=64,insecure=true"),
        ("CHAT", "llama3.2:1b,num_ctx=64,insecure=true"),
        ("chat,num_ctx=32", "llama3.2:1b,num_ctx=32,insecure=true"),
        ("chat,keep_alive=60", "llama3.2:1b,num_ctx=64,keep_alive=60,insecure=true"),
        ("long", "qwen3,num_ctx=128"),
        # The aliased options count for the model's own name too.
        ("QWEN3:latest", "QWEN3:latest,num_ctx=128"),
        ("pinned", "embed@sha256:0a109f42"),
        ("pinned@sha256:11111111", "embed@sha256:11111111"),
        # A tag makes it a model.
        ("chat:latest", "chat:latest"),
        ("other", "other"),
    ],
)
def test_an_alias_means_its_model_with_the_options_listed_for_it(asked: str, meant: str) -> None:
    (spec,) = parse_specs(asked, "x")
    assert meant == str(ROLES.meant(spec))


def test_aliases_count_as_listed_each_by_its_own_source() -> None:
    assert ("--ollama-preload", "option") == ROLES.given(ModelSpec("llama3.2:1b"))
    assert ("ini", "configuration") == ROLES.given(ModelSpec("qwen3"))
    assert ("--ollama-alias", "option") == ROLES.given(ModelSpec("embed"))
    assert ("chat", "Long", "pinned") == ROLES.names
    assert ["llama3.2:1b,num_ctx=64,insecure=true", "qwen3,num_ctx=128"] == [
        str(spec) for spec in ROLES.all[:2]
    ]


def test_the_only_alias_is_the_only_listed_model() -> None:
    models = Listed(aliases=parse_aliases(["chat=llama3.2:1b"], "ini", "configuration"))
    assert ["llama3.2:1b"] == resolved(want(fixture="ollama_model"), models)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("chat", "expected NAME=SPEC, such as chat=llama3.2:1b"),
        ("=llama3.2:1b", "expected NAME=SPEC, such as chat=llama3.2:1b"),
        ("a/b=llama3.2:1b", "expected NAME=SPEC, such as chat=llama3.2:1b"),
        ("a:b=llama3.2:1b", "expected NAME=SPEC, such as chat=llama3.2:1b"),
        ("chat=", "an alias means one model, like chat=llama3.2:1b"),
        ("chat=a b", "an alias means one model, like chat=llama3.2:1b"),
    ],
)
def test_an_alias_that_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_aliases([text], "--ollama-alias", "option")
    assert f"'{text}' (from --ollama-alias): {why}" == caught.value.message


def test_an_alias_given_twice_must_mean_the_same() -> None:
    assert 1 == len(parse_aliases(["chat=a", "CHAT=a"], "x", "option"))
    with pytest.raises(BadSpec, match="CHAT is given twice with different models"):
        parse_aliases(["chat=a", "CHAT=b"], "x", "option")


def test_capabilities_belong_to_their_model_or_to_the_listed_one() -> None:
    asked = Want(test="t", specs=(ModelSpec("a", capabilities=("tools",)), ModelSpec("b")))
    assert asked == Want.from_dict(json.loads(json.dumps(asked.to_dict())))
    plan = make_plan(listed("a,num_ctx=64"), [asked], up_front=False)
    assert [Need("t", "", ("tools",))] == plan.needs[key("a,num_ctx=64")]
    assert [Need("t")] == plan.needs[key("b")]
    bare = Want(test="t", capabilities=("vision",))
    assert bare == Want.from_dict(json.loads(json.dumps(bare.to_dict())))
    assert ("vision",) == resolve(bare, listed("a"))[0].capabilities


def test_a_want_survives_a_trip_through_json() -> None:
    asked = want(
        "a,num_ctx=64,use_mmap=true b,keep_alive=1234567.5,insecure=true",
        fixture="ollama_model",
        on_unavailable="skip",
    )
    assert asked == Want.from_dict(json.loads(json.dumps(asked.to_dict())))
    assert want() == Want.from_dict(json.loads(json.dumps(want().to_dict())))


@pytest.mark.parametrize(
    ("asked", "models", "expected"),
    [
        ("m", "", ["m"]),
        ("m,num_ctx=64", "", ["m,num_ctx=64"]),
        ("m", "other", ["m"]),
        # Without options a mark means the listed one, options included.
        ("m", "m,num_ctx=64", ["m,num_ctx=64"]),
        ("M:latest", "m,num_ctx=64,num_gpu=0", ["M:latest,num_ctx=64,num_gpu=0"]),
        # With options it makes a variant, with its own options alone.
        ("m,num_ctx=32", "m,num_ctx=64", ["m,num_ctx=32"]),
        ("m,num_gpu=0", "m,num_ctx=64", ["m,num_gpu=0"]),
        # A keep-alive, or how to pull, makes no variant.
        ("m,keep_alive=1h", "m,num_ctx=64", ["m,num_ctx=64,keep_alive=3600"]),
        ("m", "m,keep_alive=1h,insecure=true", ["m,keep_alive=3600,insecure=true"]),
        ("m,keep_alive=2h", "m,keep_alive=1h", ["m,keep_alive=7200"]),
        ("m,num_ctx=32", "m,insecure=true", ["m,num_ctx=32,insecure=true"]),
        ("b a", "a,num_ctx=64 b c", ["b", "a,num_ctx=64"]),
        # Without a name: the only listed one, else the server only.
        ("", "m,num_ctx=64", ["m,num_ctx=64"]),
        ("", "a b", []),
        ("", "", []),
    ],
)
def test_a_test_needs_what_its_mark_and_the_list_say(
    asked: str, models: str, expected: list[str]
) -> None:
    assert expected == resolved(want(asked), listed(models))


def test_a_fixture_takes_the_only_listed_model() -> None:
    assert ["m"] == resolved(want(fixture="ollama_model"), listed("m"))


@pytest.mark.parametrize("models", ["", "a b"])
def test_a_fixture_that_cannot_know_its_model_says_so(models: str) -> None:
    with pytest.raises(NoModelNamed) as caught:
        resolve(want(test="t.py::test_x", fixture="ollama_model"), listed(models))
    error = NoModelNamed("t.py::test_x", "ollama_model", tuple(models.split()))
    assert error.args == caught.value.args


def test_a_name_in_the_mark_is_enough_for_a_fixture() -> None:
    assert ["b"] == resolved(want("b", fixture="ollama_model"), listed("a b"))


@pytest.mark.parametrize("up_front", [True, False])
def test_listed_models_come_without_a_test_only_up_front(up_front: bool) -> None:
    plan = make_plan(listed("a b"), [], up_front=up_front)
    assert ([key("a"), key("b")] if up_front else []) == list(plan.targets)
    assert not plan.marked


def test_models_keep_the_order_of_the_list_and_then_of_the_tests() -> None:
    wants = [want("z", "1"), want("b", "2"), want("y a", "3"), want("z", "4")]
    plan = make_plan(listed("b a"), wants, up_front=True)
    assert [key(name) for name in "bazy"] == list(plan.targets)
    assert {key("z"): ["1", "4"], key("b"): ["2"], key("y"): ["3"], key("a"): ["3"]} == plan.tests
    assert plan.marked


def test_a_configured_model_comes_when_a_test_names_it() -> None:
    models = listed("a,num_ctx=64 b", "configuration", "ollama_preload in pyproject.toml")
    plan = make_plan(models, [want("A")], up_front=False)
    assert [key("a,num_ctx=64")] == list(plan.targets)
    (target,) = plan.targets.values()
    assert "from ollama_preload in pyproject.toml" == target.origin
    assert "configuration" == target.given_by


def test_a_variant_stands_beside_the_listed_model_and_is_listed_too() -> None:
    plan = make_plan(listed("m"), [want("m,num_ctx=64", "t")], up_front=True)
    assert [key("m"), key("m,num_ctx=64")] == list(plan.targets)
    assert {key("m,num_ctx=64"): ["t"]} == plan.tests
    assert ["option", "option"] == [one.given_by for one in plan.targets.values()]


def test_a_model_that_only_tests_want_is_listed_by_nobody() -> None:
    wants = [want("m", "tests/test_chat.py::test_tone"), want("m", "2"), want("m", "3")]
    plan = make_plan(listed("other", "option"), wants, up_front=False)
    assert {key("m"): Target(ModelSpec("m"), "", "default")} == plan.targets
    assert {key("m"): ["tests/test_chat.py::test_tone", "2", "3"]} == plan.tests


def test_a_test_that_needs_only_the_server_may_use_any_listed_model() -> None:
    models = listed("a b", "configuration")
    plan = make_plan(models, [want("c", "1"), want(test="2")], up_front=False)
    assert [key("a"), key("b"), key("c")] == list(plan.targets)
    assert {key("c"): ["1"], SERVER: ["2"]} == plan.tests
    assert plan.marked


def test_a_test_needs_only_the_server_where_nothing_is_listed() -> None:
    plan = make_plan(listed(), [want(test="2")], up_front=False)
    assert ({}, {SERVER: ["2"]}) == (plan.targets, plan.tests)


def test_a_test_whose_model_nobody_names_is_a_problem_of_that_test_alone() -> None:
    wants = [want(test="t.py::test_x", fixture="ollama_model"), want("c", "2")]
    plan = make_plan(listed("a b", "configuration"), wants, up_front=False)
    assert ["t.py::test_x"] == list(plan.problems)
    assert plan.problems["t.py::test_x"].startswith("test_x uses ollama_model without naming")
    assert [key("c")] == list(plan.targets)
    assert make_plan(listed(), wants[:1], up_front=False).marked


# --ollama-on-unavailable: what a model that cannot be made ready does.


@pytest.mark.parametrize(
    ("given_by", "ci", "policy"),
    [
        ("option", False, "exit"),
        ("option", True, "exit"),
        ("environment", False, "skip"),
        ("environment", True, "fail"),
        ("configuration", False, "skip"),
        ("configuration", True, "fail"),
        ("default", False, "skip"),
        ("default", True, "fail"),
    ],
)
def test_by_default_the_source_and_ci_decide(given_by: GivenBy, ci: bool, policy: str) -> None:
    assert policy == decide("auto", "", given_by, ci)
    assert policy == decide("auto", "auto", given_by, ci)


@pytest.mark.parametrize("ci", [False, True])
@pytest.mark.parametrize("given_by", GIVEN_BY)
@pytest.mark.parametrize("policy", ["exit", "fail", "skip"])
def test_a_named_policy_holds_everywhere(policy: str, given_by: GivenBy, ci: bool) -> None:
    assert policy == decide(policy, "", given_by, ci)
    assert policy == decide("auto", policy, given_by, ci)


@pytest.mark.parametrize("on_unavailable", ["auto", "exit", "fail", "skip"])
def test_a_mark_wins_over_the_option(on_unavailable: str) -> None:
    assert "skip" == decide(on_unavailable, "skip", "option", True)
    assert "fail" == decide(on_unavailable, "fail", "option", False)


def test_auto_in_a_mark_leaves_it_to_the_option() -> None:
    assert "fail" == decide("fail", "auto", "option", False)


def _plan(given_by: GivenBy, *wants: Want) -> Plan:
    models = listed("m", given_by)
    return make_plan(models, wants, up_front=given_by in ("option", "environment"))


def test_each_test_has_its_own_answer() -> None:
    plan = _plan(
        "environment",
        want("m", "1"),
        want("m", "2", on_unavailable="fail"),
        want("m", "3", on_unavailable="exit"),
        want("other", "4"),
    )
    assert ["skip", "fail", "exit"] == decisions(plan, key("m"), "auto", False)
    assert ["fail", "fail", "exit"] == decisions(plan, key("m"), "auto", True)
    assert ["skip"] == decisions(plan, key("other"), "auto", False)


def test_a_variant_of_a_model_on_the_command_line_ends_the_run_too() -> None:
    plan = _plan("option", want("m,num_ctx=64", "1"))
    assert ["exit"] == decisions(plan, key("m,num_ctx=64"), "auto", False)


def test_tests_that_need_only_the_server_skip_or_fail() -> None:
    plan = make_plan(listed("", "default"), [want(test="1"), want(test="2")], up_front=False)
    assert ["skip", "skip"] == decisions(plan, SERVER, "auto", False)
    assert ["fail", "fail"] == decisions(plan, SERVER, "auto", True)


@pytest.mark.parametrize(
    ("given_by", "on_unavailable", "ci", "policy"),
    [
        ("option", "auto", False, "exit"),
        ("option", "auto", True, "exit"),
        # An unmarked suite: the run ends in CI, and warns (nothing is skipped) elsewhere.
        ("environment", "auto", True, "exit"),
        ("environment", "auto", False, "skip"),
        ("environment", "fail", False, "exit"),
        ("environment", "skip", True, "skip"),
        ("option", "skip", True, "skip"),
        ("environment", "exit", False, "exit"),
    ],
)
def test_in_an_unmarked_suite_there_is_one_answer_for_the_run(
    given_by: GivenBy, on_unavailable: str, ci: bool, policy: str
) -> None:
    assert [policy] == decisions(_plan(given_by), key("m"), on_unavailable, ci)


def test_a_listed_model_that_no_marked_test_needs_does_not_end_the_run() -> None:
    plan = _plan("environment", want("other", "1"))
    assert ["fail"] == decisions(plan, key("m"), "auto", True)
    assert ["skip"] == decisions(plan, key("m"), "auto", False)
