"""The documents say what the code does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pytest_ollama_warmup.config.options import OPTIONS
from pytest_ollama_warmup.config.spec import KEYS
from pytest_ollama_warmup.session.mark_names import MARK
from tests.conftest import LLAMA, Suite

TOP = Path(__file__).parents[1]
REFERENCE = (TOP / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_reference_has_every_option_key_and_the_mark() -> None:
    for option in OPTIONS:
        assert f"`{option.flag}" in REFERENCE
    for key in KEYS:
        assert f"`{key}`" in REFERENCE
    assert f"`@pytest.mark.{MARK}`" in REFERENCE


def test_the_example_of_a_system_prompt_warms_by_it(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    example = TOP / "docs" / "examples" / "system_prompt"
    shutil.copytree(example, suite.pytester.path, dirs_exist_ok=True)
    assert {"passed": 2} == suite.run("--ollama-preload=llama3.2:1b").counts
    first, *tests = suite.ollama.calls("chat")
    assert 2 == len(tests)
    (system,) = first.body["messages"]
    # What the server has read is of use only to a conversation that begins with it.
    assert all(system == test.body["messages"][0] for test in tests)
    assert 1 == len(suite.ollama.loads)
