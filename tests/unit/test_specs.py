"""One model with its options, in its one text form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_warmup.config.model_specs import (
    FOREVER,
    KEYS,
    ModelSpec,
    parse_duration,
    parse_specs,
)
from pytest_ollama_warmup.errors import BadSpec

ALL_KEYS = "num_ctx, num_batch, num_gpu, main_gpu, use_mmap, num_thread, keep_alive, insecure"


def names(text: str) -> list[str]:
    return [spec.name for spec in parse_specs(text, "x")]


def only(text: str) -> ModelSpec:
    (spec,) = parse_specs(text, "x")
    return spec


def refusal(text: str, source: str = "--ollama-preload") -> str:
    with pytest.raises(BadSpec) as caught:
        parse_specs(text, source)
    return caught.value.message


@pytest.mark.parametrize(
    "text",
    ["a b:1 c", "a,b:1,c", " a ,, b:1\n\tc ,", "a\nb:1\r\nc"],
)
def test_a_list_is_split_at_white_space_and_commas(text: str) -> None:
    assert ["a", "b:1", "c"] == names(text)


@pytest.mark.parametrize("text", ["", " ", ",", "\n, ,\t"])
def test_nothing_lists_nothing(text: str) -> None:
    assert () == parse_specs(text, "x")


def test_several_texts_add_up() -> None:
    specs = parse_specs(["a", "b c,num_ctx=32"], "x")
    assert ["a", "b", "c,num_ctx=32"] == [str(spec) for spec in specs]


@pytest.mark.parametrize(
    "name",
    [
        "llama3.2:1b",
        "hf.co/org/repo:Q4_K_M",
        "localhost:5000/team/model:tag",
        "qwen3:480b-cloud",
        "http://localhost:5000/team/model",
    ],
)
def test_a_name_stays_as_it_was_typed(name: str) -> None:
    assert ModelSpec(name) == only(name)


@pytest.mark.parametrize("text", ["a b,num_ctx=32 num_gpu=1 c", "a,b,num_gpu=1,num_ctx=32,c"])
def test_a_key_belongs_to_the_model_before_it(text: str) -> None:
    expected = (
        ModelSpec("a"),
        ModelSpec("b", (("num_ctx", 32), ("num_gpu", 1))),
        ModelSpec("c"),
    )
    assert expected == parse_specs(text, "x")


def test_a_key_does_not_reach_back_into_another_text() -> None:
    with pytest.raises(BadSpec, match="no model before it"):
        parse_specs(["m", "num_ctx=64"], "x")


def test_every_key_is_read_to_its_type() -> None:
    spec = only(
        "m,num_ctx=16,num_batch=1,num_gpu=-1,main_gpu=0,use_mmap=false,num_thread=1,"
        "keep_alive=5m,insecure=true"
    )
    options = (
        ("main_gpu", 0),
        ("num_batch", 1),
        ("num_ctx", 16),
        ("num_gpu", -1),
        ("num_thread", 1),
        ("use_mmap", False),
    )
    assert ModelSpec("m", options, 300.0, True) == spec
    assert isinstance(dict(spec.options)["use_mmap"], bool)


def test_ollamas_own_proposal_for_the_variable_is_read_too() -> None:
    expected = (ModelSpec("m", (("num_ctx", 8192),), 1800.0), ModelSpec("n"))
    assert expected == parse_specs("m?num_ctx=8192&keepalive=30m n", "x")
    assert expected == parse_specs("m?keep_alive=30m&num_ctx=8192,n", "x")
    assert expected == parse_specs("m?num_ctx=8192 keep_alive=30m n", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "num_ctx=8192",
            "'num_ctx=8192' (from --ollama-preload): no model before it; "
            "write llama3.2:1b,num_ctx=8192 as one value",
        ),
        (
            "m,num_ctxx=1",
            "'num_ctxx=1' (from --ollama-preload): unknown key 'num_ctxx'; did you mean num_ctx?",
        ),
        (
            "m,NUM_CTX=64",
            "'NUM_CTX=64' (from --ollama-preload): unknown key 'NUM_CTX'; did you mean num_ctx?",
        ),
        (
            "m,temperature=1",
            "temperature does not decide how a model is loaded: send it with each request; "
            f"keys: {ALL_KEYS}",
        ),
        ("m,heat=1", f"unknown key 'heat'; keys: {ALL_KEYS}"),
        ("qwen 2.5", "a space separates models; qwen2.5 is one"),
        (
            "m:1b,8192",
            "'8192' (from --ollama-preload): no model has such a name; for a context length write num_ctx=8192",
        ),
        ("m:1b 3.2:1b", "'3.2:1b' (from --ollama-preload): no model has such a name"),
        (
            "test_chat.py",
            "'test_chat.py' (from --ollama-preload): a file, no model; expected a name such as llama3.2:1b",
        ),
        ("tests/test_chat.py::test_tone", "a file, no model"),
        ("m,keepalive=1m", "unknown key 'keepalive'; did you mean keep_alive?"),
        (
            "m,num_ctx=",
            f"'num_ctx=' (from --ollama-preload): expected key=value; keys: {ALL_KEYS}",
        ),
        ("m,=8", f"'=8' (from --ollama-preload): expected key=value; keys: {ALL_KEYS}"),
        ("m?num_ctx", f"'num_ctx' (from --ollama-preload): expected key=value; keys: {ALL_KEYS}"),
        ("m?num_ctx=64&", f"'' (from --ollama-preload): expected key=value; keys: {ALL_KEYS}"),
        (
            "m?",
            "'m?' (from --ollama-preload): expected a model name such as llama3.2:1b",
        ),
        ("?num_ctx=64", "'?num_ctx=64' (from --ollama-preload): expected a model name"),
        ("a/b/c/d", "'a/b/c/d' (from --ollama-preload): "),
        ("a/b/c/d", "; expected a model name such as llama3.2:1b"),
        ("m@latest", "'m@latest' (from --ollama-preload): "),
        ("-m", "'-m' (from --ollama-preload): "),
        ("m:", "'m:' (from --ollama-preload): "),
    ],
)
def test_what_is_no_spec_is_refused_with_token_source_and_what_is_allowed(
    text: str, said: str
) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize(
    ("option", "least"),
    [("num_ctx", 16), ("num_batch", 1), ("num_gpu", -1), ("main_gpu", 0), ("num_thread", 1)],
)
def test_a_number_has_a_least_value(option: str, least: int) -> None:
    assert ((option, least),) == only(f"m,{option}={least}").options
    for text in (f"{least - 1}", "1.5", "many", "0x10", "1e3", "-", "1234567890"):
        assert (
            f"'{option}={text}' (from env): expected a whole number of at least {least}"
            == refusal(f"m,{option}={text}", "env")
        )


@pytest.mark.parametrize("option", ["use_mmap", "insecure"])
def test_a_switch_is_true_or_false(option: str) -> None:
    read = {text: only(f"m,{option}={text}") for text in ("true", "TRUE", "1", "false", "0")}
    assert read["true"] == read["TRUE"] == read["1"]
    assert read["false"] == read["0"]
    assert read["true"] != read["false"]
    assert f"'{option}=yes' (from env): expected true or false" == refusal(f"m,{option}=yes", "env")


@pytest.mark.parametrize(
    "text",
    [
        "m,num_ctx=64,num_ctx=128",
        "m?num_ctx=64&num_ctx=128",
        "m,use_mmap=true,use_mmap=false",
        "m,keep_alive=1m,keep_alive=2m",
    ],
)
def test_an_option_with_two_values_is_refused(text: str) -> None:
    assert "is given twice for m" in refusal(text)


def test_an_option_given_twice_alike_is_one() -> None:
    assert only("m,num_ctx=64") == only("m,num_ctx=64,num_ctx=64")


@pytest.mark.parametrize(
    "again", ["m", "m:latest", "M", "library/m", "registry.ollama.ai/library/m"]
)
def test_a_model_listed_twice_alike_is_one_under_its_first_spelling(again: str) -> None:
    assert (ModelSpec("m"),) == parse_specs(f"m {again}", "x")
    assert ["m,num_ctx=64"] == [
        str(one) for one in parse_specs(["m,num_ctx=64", f"{again},num_ctx=64"], "x")
    ]


@pytest.mark.parametrize("other", ["num_ctx=64", "keep_alive=60", "insecure=true"])
def test_a_model_listed_twice_with_different_options_is_refused(other: str) -> None:
    assert (f"'M:latest,{other}' (from env): m is listed twice with different options") == refusal(
        f"m M:latest,{other}", "env"
    )
    with pytest.raises(BadSpec, match="m is listed twice with different options"):
        parse_specs(["m", f"m,{other}"], "env")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800.0),
        ("300", 300.0),
        ("1.5", 1.5),
        ("1.5s", 1.5),
        ("1h30m", 5400.0),
        (".5h", 1800.0),
        ("1500ms", 1.5),
        ("2000000us", 2.0),
        ("2000000µs", 2.0),
        ("3000000000ns", 3.0),
        ("+90s", 90.0),
        ("1", 1.0),
        (" 10m ", 600.0),
        ("-1", FOREVER),
        ("-1m", FOREVER),
        ("-1s", FOREVER),
        ("-5m", FOREVER),
        ("-0.5", FOREVER),
        ("8760h", 31536000.0),
        ("8760h1s", FOREVER),
        ("31536000", 31536000.0),
        ("31536001", FOREVER),
        ("10000000000", FOREVER),
        ("9.3e9", FOREVER),
        ("9" * 400 + "h", FOREVER),
    ],
)
def test_a_lease_is_seconds_or_gos_duration(text: str, seconds: float) -> None:
    assert seconds == parse_duration(text, "x")


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0s",
        "0h0m",
        "-0",
        "-0s",
        "0.5",
        "999ms",
        "1ns",
        "",
        "1d",
        "forever",
        "true",
        "[]",
        "{}",
        "m",
        "10 m",
        "1h 30m",
        "1hm",
        "1h30",
        "nan",
        "-",
        "1..5s",
    ],
)
def test_a_lease_that_unloads_at_once_or_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_duration(text, "--ollama-keep-alive")
    assert (
        f"{text!r} (from --ollama-keep-alive): expected a duration: seconds (600), 10m, 1h30m, "
        "or -1 for no limit; at least 1 s"
    ) == caught.value.message


def test_options_of_a_mark_are_added() -> None:
    spec = only("m,num_gpu=1").given({"num_ctx": 64, "use_mmap": True, "keep_alive": "1h"}, "mark")
    assert only("m,num_ctx=64,num_gpu=1,use_mmap=true,keep_alive=1h") == spec


def test_options_of_a_mark_may_repeat_what_the_spec_says() -> None:
    assert only("m,num_ctx=64") == only("m,num_ctx=64").given({"num_ctx": 64}, "mark")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_ctx": 128}, "'num_ctx=128' (from mark): m,num_ctx=64 says otherwise; give it once"),
        ({"num_gpu": -2}, "'num_gpu=-2' (from mark): expected a whole number of at least -1"),
        ({"num_gpu": 1.5}, "'num_gpu=1.5' (from mark): expected a whole number of at least -1"),
        ({"num_gpu": True}, "'num_gpu=true' (from mark): expected a whole number of at least -1"),
        ({"num_gpu": None}, "'num_gpu=None' (from mark): expected a whole number of at least -1"),
        ({"use_mmap": "maybe"}, "'use_mmap=maybe' (from mark): expected true or false"),
        ({"keep_alive": 0}, "'keep_alive=0' (from mark): expected a duration"),
        (
            {"num_ctxx": 1},
            "'num_ctxx=1' (from mark): unknown key 'num_ctxx'; did you mean num_ctx?",
        ),
    ],
)
def test_a_bad_option_of_a_mark_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(BadSpec) as caught:
        only("m,num_ctx=64").given(options, "mark")
    assert caught.value.message.startswith(said)


def test_options_leave_the_spec_they_are_added_to_as_it_was() -> None:
    spec = only("m")
    spec.given({"num_ctx": 64}, "mark")
    assert ModelSpec("m") == spec


@pytest.mark.parametrize(
    "spelling",
    [
        "llama3.2:latest",
        "LLAMA3.2",
        "library/llama3.2",
        "registry.ollama.ai/library/Llama3.2:LATEST",
    ],
)
def test_spellings_of_one_model_have_one_key(spelling: str) -> None:
    assert only("llama3.2").model_key == only(spelling).model_key
    assert only("llama3.2,num_ctx=64").key == only(f"{spelling},num_ctx=64").key


@pytest.mark.parametrize(
    "other", ["llama3.2:1b", "llama3", "team/llama3.2", "hf.co/library/llama3.2"]
)
def test_other_models_have_other_keys(other: str) -> None:
    assert only("llama3.2").model_key != only(other).model_key


def test_runner_options_make_another_key_and_leases_do_not() -> None:
    plain = only("m")
    assert plain.key != only("m,num_ctx=64").key
    assert plain.key == only("m,keep_alive=1h,insecure=true").key
    assert only("m,num_gpu=1,num_ctx=64").key == only("m,num_ctx=64,num_gpu=1").key
    assert plain.model_key == only("m,num_ctx=64").model_key


def test_the_keys_are_those_that_refusals_list() -> None:
    assert ALL_KEYS == ", ".join(KEYS)


_part = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,9}", fullmatch=True)
_names = st.one_of(
    _part,
    st.tuples(_part, _part).map(":".join),
    st.tuples(st.just("hf.co"), _part, _part).map("/".join),
).filter(lambda name: not name.lower().endswith(("cloud", "local")))
_options = st.fixed_dictionaries(
    {},
    optional={
        "num_ctx": st.integers(16, 999_999_999),
        "num_batch": st.integers(1, 99_999),
        "num_gpu": st.integers(-1, 999),
        "main_gpu": st.integers(0, 9),
        "use_mmap": st.booleans(),
        "num_thread": st.integers(1, 999),
    },
).map(lambda options: tuple(sorted(options.items())))
_specs = st.builds(
    ModelSpec,
    _names,
    _options,
    st.one_of(st.none(), st.just(FOREVER), st.floats(1, 31_536_000)),
    st.booleans(),
    digest=st.just(""),
    capabilities=st.just(()),
)


@given(_specs)
def test_a_spec_reads_again_from_its_text(spec: ModelSpec) -> None:
    assert (spec,) == parse_specs(str(spec), "x")


@given(st.text())
def test_a_text_is_read_or_refused_in_one_line(text: str) -> None:
    said = ""
    specs: tuple[ModelSpec, ...] = ()
    try:
        specs = parse_specs(text, "x")
    except BadSpec as exc:
        said = exc.message
    assert said.isprintable()
    assert specs == parse_specs([str(spec) for spec in specs], "x")


@given(st.text(alphabet="0123456789.+-hmsuµn eEinfa"))
def test_a_duration_is_read_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text, "x")
    except BadSpec:
        return
    assert seconds == FOREVER or 1 <= seconds <= 31_536_000
