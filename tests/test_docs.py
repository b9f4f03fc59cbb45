"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generated import FIXTURES, HOOKS, MARKER, expand, marked, public_names
from pytest_ollama_warmup.cli.main import _COMMANDS
from pytest_ollama_warmup.config.model_specs import KEYS
from pytest_ollama_warmup.config.options import OPTIONS

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"


def page(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def marked_headings(name: str, kind: str) -> list[tuple[str, str]]:
    """Return the headings of a page that a marker of *kind* follows, each with what it names."""
    return re.findall(rf"^#+ `(.*?)`\n\n<!-- generated: {kind} ([\w-]+) -->$", page(name), re.M)


def test_the_reference_has_every_option_and_its_groups() -> None:
    expected = [(option.flag, option.name) for option in OPTIONS]
    assert sorted(expected) == sorted(marked_headings("reference/options", "option"))
    groups = re.findall(r"generated: overview (\w+)", page("reference/options"))
    assert list(dict.fromkeys(option.group for option in OPTIONS)) == groups


def test_the_reference_has_every_key_mark_fixture_hook_and_command() -> None:
    for key in KEYS:
        assert f"`{key}`" in page("reference/models")
    for name, module in (("fixtures", FIXTURES), ("hooks", HOOKS)):
        names = public_names(module)
        found = marked_headings(f"reference/{name}", name.removesuffix("s"))
        assert sorted((one, one) for one in names) == sorted(found)
    commands = marked_headings("reference/command-line", "help")
    assert [(name, name) for name in _COMMANDS] == commands
    assert ["MARK", "LONG_MARK", "KEEP_ORDER"] == [
        name for _, name in marked_headings("reference/models", "mark")
    ]


def test_what_is_generated_comes_from_the_code() -> None:
    text = expand("a\n<!-- generated: option host -->\nb\n<!-- generated: overview server -->")
    for part in (
        ":pytest: `--ollama-host URL[,URL...]`",
        ":Configuration file: `ollama_host`, a string",
        ":Environment: `OLLAMA_HOST`",
        ":ollama-warmup: `--host URL`",
        ":Default: `OLLAMA_HOST`, otherwise `http://127.0.0.1:11434`",
        "Separate several with commas",
        "| [`--ollama-serve`](#--ollama-serve) | `ollama_serve` |  | `off` |",
    ):
        assert part in text
    assert "usage: ollama-warmup unload [-h]" in expand("<!-- generated: help unload -->")
    assert "@pytest.mark.requires_model(*specs" in expand("<!-- generated: mark MARK -->")
    fixture = expand("<!-- generated: fixture ollama_client -->")
    assert fixture.startswith(":Scope: session\n:Value: `ollama.Client`\n")
    hook = expand("<!-- generated: hook pytest_ollama_host -->")
    assert hook.startswith("```python\ndef pytest_ollama_host(config: pytest.Config)")
    assert "\n```python\n@pytest.hookimpl(optionalhook=True)\n" in hook
    with pytest.raises(KeyError):
        expand("<!-- generated: option nonsense -->")


def test_code_in_the_text_of_help_is_marked() -> None:
    text = "Set a=m:1b,num_ctx=8192. See --ollama-wait; OLLAMA_HOST, 'ollama serve' and {url}."
    expected = "Set `a=m:1b,num_ctx=8192`. See `--ollama-wait`; `OLLAMA_HOST`, `ollama serve` and "
    assert f"{expected}`{{url}}`." == marked(text)


def test_every_marker_of_a_page_is_understood() -> None:
    pages = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    assert len(pages) > 20
    for path in pages:
        text = path.read_text("utf-8")
        # One that is misspelled would be a comment, which nobody sees.
        assert text.count("<!-- generated") == len(MARKER.findall(text)), path
        assert "<!-- generated" not in expand(text)


def test_the_figures_of_the_costs_are_those_of_the_benchmarks() -> None:
    measured = (TOP / "benchmarks" / "README.md").read_text("utf-8")
    for name in ("explanation/costs", "explanation/warm-models"):
        for figure in re.findall(r"\b\d+\.\d\d\b", page(name)):
            assert figure in measured, figure
