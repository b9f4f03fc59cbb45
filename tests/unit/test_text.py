"""How figures, and text from outside, are written for people."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_warmup.text import Secret, clean, count, seconds, size, wanted_by, wrapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("  stripped \n", "stripped"),
        ("one\nline\r\nonly\tand\x00no nul", "one line only and no nul"),
        ("\x1b[31mred\x1b[0m, \x1b[1;4mbold\x1b[m", "red, bold"),
        ("\x1b[2J\x1b[1;1Hcleared", "cleared"),
        ("\x1b[?25lhidden", "hidden"),
        ("\x1b]0;window title\x07shown", "shown"),
        ("\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]8;;http://evil.test\x07link\x1b]8;;\x07", "link"),
        ("\x1bMup\x1b", "up"),
        ("\x9b31mC1\x85line\x7fdel", "31mC1 line del"),
        ("a\u202eb\u202cc\u2066d\u2069e", "a b c d e"),
        ("a\u2028b\u2029c", "a b c"),
        ("half a pair: \ud83d", "half a pair:"),
        ("ünïcödé 模型 🦙", "ünïcödé 模型 🦙"),
    ],
)
def test_text_from_outside_becomes_one_harmless_line(text: str, shown: str) -> None:
    assert shown == clean(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Get http://user:hunter2@h:1/v2", "Get http://***@h:1/v2"),
        ("https://hunter2@h", "https://***@h"),
        ("http://user:hunter2@hunter2@h", "http://***@h"),
        ("a://u:p@h b://u:p@h", "a://***@h b://***@h"),
        ("http://us\x1b[0mer:hunter2@h", "http://***@h"),
        ("http://h/path user@example.com", "http://h/path user@example.com"),
        ("embed@sha256:0a109f42", "embed@sha256:0a109f42"),
    ],
)
def test_a_password_in_an_address_is_not_shown(text: str, shown: str) -> None:
    assert shown == clean(text)


def test_long_text_is_cut_to_the_limit() -> None:
    assert "x" * 500 == clean("x" * 500)
    assert "x" * 499 + "…" == clean("x" * 501)
    assert "abcd…" == clean("abcdefgh", 5)


def test_any_object_can_be_shown() -> None:
    assert "{'a': None}" == clean({"a": None})


@given(st.text(st.characters()))
def test_no_text_can_break_a_line_or_the_encoder(text: str) -> None:
    shown = clean(text)
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & set(map(chr, [*range(32), *range(127, 160)]))
    assert shown == shown.encode().decode()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (9_900, "9.9 kB"),
        (10_000, "10 kB"),
        (412_000_000, "412 MB"),
        (1_000_000, "1.0 MB"),
        (999_600_000, "1.0 GB"),
        (1_300_000_000, "1.3 GB"),
        (41_600_000_000, "42 GB"),
        (1_200_000_000_000, "1200 GB"),
        (54_321_987.6, "54 MB"),
    ],
)
def test_sizes_have_decimal_units_and_two_figures_at_least(number: float, shown: str) -> None:
    assert shown == size(number)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 ms"),
        (0.004, "4 ms"),
        (0.006, "6 ms"),
        (0.1, "0.1 s"),
        (0.27, "0.27 s"),
        (0.999, "1 s"),
        (1, "1 s"),
        (2.0, "2 s"),
        (1.23, "1.2 s"),
        (2.14, "2.1 s"),
        (24.13, "24.1 s"),
        (60, "60 s"),
        (99.9, "99.9 s"),
        (100, "1 min 40 s"),
        (119.6, "2 min"),
        (120, "2 min"),
        (185, "3 min 5 s"),
        (900, "15 min"),
        (7200, "120 min"),
    ],
)
def test_durations_are_seconds_and_then_minutes(number: float, shown: str) -> None:
    assert shown == seconds(number)


def test_a_number_agrees_with_its_noun() -> None:
    assert ["0 tests", "1 test", "41 tests"] == [count(number, "test") for number in (0, 1, 41)]


def test_the_first_test_is_named_and_the_others_counted() -> None:
    assert "wanted by a.py::test_b" == wanted_by(["a.py::test_b"])
    assert "wanted by a.py::test_b and 2 more" == wanted_by(["a.py::test_b", "x", "y"])
    assert "wanted by a.py::test_b[ ]" == wanted_by(["a.py::test_b[\x1b[31m\n]"])


def test_a_secret_is_a_text_that_nothing_shows() -> None:
    secret = Secret("sk-1")
    assert "sk-1" == secret == f"{secret}"
    assert ("'***'", "{'key': '***'}") == (repr(secret), repr({"key": secret}))
    assert secret == pickle.loads(pickle.dumps(secret))
    assert "'***'" == repr(pickle.loads(pickle.dumps(secret)))


@pytest.mark.parametrize("quantity", ["4 s", "320 ms", "1.3 GB", "12 h", "3 min"])
def test_a_number_stays_with_its_unit(quantity: str) -> None:
    words = f"{'x' * (38 - len(quantity.split()[0]))} {quantity}. "
    for width in range(20, 60):
        lines = wrapped(words * 3, width, 2)
        assert 3 == sum(line.count(quantity) for line in lines), lines
