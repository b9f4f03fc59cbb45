"""What users get wrong in their first hour, and what they read then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Suite

SIGNATURE = "requires_model(*specs, capabilities=(), options=None, on_unavailable=None)"


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("model='a:1'", 'models are given without model=: requires_model("a:1").'),
        ("models=['a:1', 'b:1']", 'models are given without models=: requires_model("a:1", "b:1").'),
        ("'a:1', num_ctx=4096", 'num_ctx goes into options={"num_ctx": 4096}.'),
        ("'a:1', keep_alive='1h'", """keep_alive goes into options={"keep_alive": '1h'}."""),
        ("'a:1', temperature=0", "temperature does not decide how a model is loaded: send it with each request."),
        ("'a:1', capability='tools'", "requires_model has no argument capability; did you mean capabilities?"),
        ("'a:1', capabilities='tool'", "no model has the capability 'tool'; did you mean 'tools'?"),
    ],
)  # fmt: skip
def test_an_argument_that_the_mark_does_not_take_gets_what_to_write_instead(
    suite: Suite, mark: str, message: str
) -> None:
    suite.write(
        {"test_it.py": f"import pytest\n@pytest.mark.requires_model({mark})\ndef test_it(): ..."}
    )
    run = suite.run()
    assert 4 == run.ret
    assert f"ERROR: test_it.py::test_it: {message} The mark is {SIGNATURE}.\n" in run.err
