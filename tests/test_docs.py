"""The documents say what the code does."""

from __future__ import annotations

from pathlib import Path

from pytest_ollama_warmup.marks import MARK
from pytest_ollama_warmup.options import OPTIONS
from pytest_ollama_warmup.warmup.spec import KEYS

TOP = Path(__file__).parents[1]
REFERENCE = (TOP / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_reference_has_every_option_key_and_the_mark() -> None:
    for option in OPTIONS:
        assert f"`{option.ini if option.ini_only else option.flag}" in REFERENCE
    for key in KEYS:
        assert f"`{key}`" in REFERENCE
    assert f"`@pytest.mark.{MARK}`" in REFERENCE


def test_the_readme_fits_one_screen_and_gives_the_two_commands() -> None:
    lines = (TOP / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert [
        "    python -m pip install tox && tox -e demo",
        "    python -m pip install tox && tox",
    ] == [line for line in lines if "pip install tox" in line]
