"""The example projects of the documentation work, and so does the tutorial."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import pytest_ollama_warmup
from tests.conftest import LLAMA, Suite, is_ours
from tests.test_docs import DOCS, page
from tests.test_readme import comparable

if TYPE_CHECKING:
    from collections.abc import Iterator


EXAMPLES = DOCS / "examples"
PULLED = replace(LLAMA, present=True)
CONTAINER = {
    "testcontainers/__init__.py": "",
    "testcontainers/community/__init__.py": "",
    "testcontainers/community/ollama.py": """
        import os

        class OllamaContainer:
            def __init__(self, image):
                assert image.startswith("ollama/ollama:")
            def start(self):
                open("container.log", "a").write("start ")
                return self
            def stop(self):
                open("container.log", "a").write("stop ")
            __enter__ = start
            def __exit__(self, *exc):
                self.stop()
            def get_endpoint(self):
                return os.environ["CONTAINER"]
            def pull_model(self, model):
                import ollama
                ollama.Client(self.get_endpoint()).pull(model)
    """,
}


def use(suite: Suite, example: str) -> None:
    """Put an example into the folder of *suite*."""
    shutil.copytree(EXAMPLES / example, suite.pytester.path, dirs_exist_ok=True)


def test_the_example_of_a_system_prompt_warms_by_it(suite: Suite) -> None:
    suite.ollama.add(PULLED)
    use(suite, "system_prompt")
    assert {"passed": 2} == suite.run("--ollama-preload=llama3.2:1b").counts
    first, *tests = suite.ollama.calls("chat")
    assert 2 == len(tests)
    (system,) = first.body["messages"]
    # What the server has read is of use only to a conversation that begins with it.
    assert all(system == test.body["messages"][0] for test in tests)
    assert 1 == len(suite.ollama.loads)


def test_the_script_of_the_examples_preloads(suite: Suite) -> None:
    use(suite, "script")
    embed = replace(LLAMA, name="nomic-embed-text", capabilities=("embedding",))
    suite.ollama.add(embed)
    script = suite.pytester.path / "preload_models.py"
    assert 0 == suite.pytester.runpython(script).ret
    loaded = {load.model for load in suite.ollama.loads}
    assert {"llama3.2:1b", "nomic-embed-text:latest"} == loaded
    suite.ollama.unload("nomic-embed-text")
    suite.ollama.add(replace(embed, present=True, load_error="out of memory"))
    done = suite.pytester.runpython(script)
    assert 1 == done.ret
    done.stdout.fnmatch_lines(["nomic-embed-text *out of memory*"])


@pytest.mark.parametrize("state", ["before", "after"])
def test_the_suite_that_has_a_warm_up_fixture(suite: Suite, state: str) -> None:
    use(suite, f"move_fixture/{state}")
    args = [] if state == "before" else ["--ollama-pull=missing"]
    assert {"passed": 2} == suite.run(*args).counts
    assert {"llama3.2:1b"} == {load.model for load in suite.ollama.loads}
    count = len(suite.ollama.requests)
    assert {"passed": 1} == suite.run("-k", "prompt").counts
    # Only the fixture asks the server for a test that needs no model.
    assert (state == "before") == (len(suite.ollama.requests) > count)


@pytest.mark.parametrize("state", ["before", "after"])
def test_the_suite_that_starts_a_container(
    suite: Suite, state: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(suite, f"move_testcontainers/{state}")
    suite.write(CONTAINER)
    monkeypatch.setenv("CONTAINER", suite.ollama.url)
    monkeypatch.setenv("OLLAMA_HOST", nobody)
    run = suite.run("--ollama-pull=missing")
    assert {"passed": 1} == run.counts
    log = suite.pytester.path / "container.log"
    assert ["start", "stop"] == log.read_text("utf-8").split()
    assert (state == "after") == any(is_ours(one) for one in suite.ollama.calls("pull"))


def test_the_job_that_pulls_a_model(suite: Suite) -> None:
    before, after = (
        [step["run"] for step in yaml.safe_load(path.read_text("utf-8"))["steps"]]
        for path in (EXAMPLES / "move_ci" / "before.yml", EXAMPLES / "move_ci" / "after.yml")
    )
    assert before[0] == after[0]
    command = after[-1].removeprefix("python -m pytest ")
    suite.write({"test_chat.py": "def test_tone():\n    pass"})
    assert {"passed": 1} == suite.run(*command.split()).counts
    assert ["llama3.2:1b"] == [load.model for load in suite.ollama.loads]


@pytest.mark.parametrize("name", ["cache-by-name", "cache-by-digest"])
def test_the_steps_of_a_cache_print_their_keys(suite: Suite, name: str) -> None:
    steps = yaml.safe_load((EXAMPLES / "move_ci" / f"{name}.yml").read_text("utf-8"))
    suite.ollama.add(replace(LLAMA, name="nomic-embed-text", capabilities=("embedding",)))
    output = suite.pytester.path / "output"
    command = f'ollama-warmup() {{ "{sys.executable}" -m pytest_ollama_warmup "$@"; }}\n'
    for step in steps:
        assert ("run" in step) != ("@" in step.get("uses", ""))
        if "run" in step:
            environ = os.environ | {"GITHUB_OUTPUT": str(output)}
            done = subprocess.run(["bash", "-euc", command + step["run"]], env=environ)
            assert 0 == done.returncode
    (line,) = output.read_text("utf-8").splitlines()
    found = re.fullmatch(r"key=ollama-models-\w+(-\w+)?", line)
    assert found
    assert ("digest" in name) == bool(found[1])
    assert ("digest" in name) == bool(suite.ollama.requests)


def test_configuration_on_the_pages_is_accepted(suite: Suite) -> None:
    suite.write({"test_plain.py": "def test_plain():\n    pass"})
    found = [
        block
        for path in sorted(DOCS.rglob("*.md"))
        for block in re.findall(r"^```toml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
        if "_build" not in path.parts and "[tool.pytest" in block
    ]
    assert len(found) >= 3
    for block in found:
        suite.write({"pyproject.toml": block})
        # An unknown key, and a value of another type, end the run.
        run = suite.run("--strict-config", "--ollama-off")
        assert {"passed": 1} == run.counts, block


def steps_of_the_tutorial() -> Iterator[tuple[str, str]]:
    """Yield what a reader does and sees: files, commands, output, and the server's state."""
    pattern = re.compile(
        r"^```\{literalinclude\} examples/tutorial/(?P<file>\S+)$|^ {4}(?P<command>\S.*)$|"
        r"^```text\n(?P<output>(?:.*\n)*?)```$|^(?P<server>Stop) Ollama|"
        r"^Change the mark in `(?P<edited>\S+)` to the alias",
        re.MULTILINE,
    )
    for found in pattern.finditer(page("tutorial")):
        kind = found.lastgroup
        assert kind is not None
        yield kind, found[kind]


def seen_in(out: str) -> list[str]:
    """Return the lines of a run as on a machine whose server has the usual address."""
    out = re.sub(r"http://127\.0\.0\.1:\d+ \(from OLLAMA_HOST\)", "DEFAULT", out)
    return [comparable(line) for line in out.splitlines()]


@pytest.mark.usefixtures("ollama_in_path")
def test_the_tutorial_works_as_written(
    suite: Suite, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.ollama.add(replace(LLAMA, load_s=0.3))
    out, ran = "", 0
    for kind, text in steps_of_the_tutorial():
        if kind == "file":
            shutil.copy(EXAMPLES / "tutorial" / text, suite.pytester.path)
        elif kind == "edited":
            path = suite.pytester.path / text
            path.write_text(path.read_text("utf-8").replace(f'"{LLAMA.name}"', '"chat"'), "utf-8")
        elif kind == "server":
            monkeypatch.setenv("OLLAMA_HOST", nobody)
        elif kind == "output":
            said = text.replace("http://127.0.0.1:11434 (the default)", "DEFAULT")
            for line in said.splitlines():
                assert comparable(line) in seen_in(out), out
        elif found := re.fullmatch(r"(CI=true )?pytest ?(.*)", text):
            with monkeypatch.context() as patch:
                if found[1]:
                    patch.setenv("CI", "true")
                args = [arg.strip('"') for arg in re.findall(r'"[^"]*"|\S+', found[2])]
                out, ran = suite.run(*args).out, ran + 1
    assert 7 == ran
    assert {"llama3.2:1b"} == {load.model for load in suite.ollama.loads}


def test_the_workflow_of_the_tutorial_runs_the_tests_that_it_wrote(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = yaml.safe_load((EXAMPLES / "tutorial" / "tests.yml").read_text("utf-8"))
    *_, last = workflow["jobs"]["tests"]["steps"]
    assert "python -m pytest" == last["run"]
    use(suite, "tutorial")
    monkeypatch.setenv("CI", "true")
    assert {"passed": 4} == suite.run().counts


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--ollama-on-unavailable=fail"], 1),
        (["--ollama-on-unavailable=exit"], 2),
        (["--ollama-preload=llama9", "--ollama-pull=never"], 2),
        (["--ollama-pull=soon"], 4),
        (["-o", "ollama_wait=soon"], 4),
        (["test_mark.py"], 4),
        (["--ollama-on-unavailable=skip"], 0),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_exit_codes_are_those_of_the_page(suite: Suite, args: list[str], code: int) -> None:
    test = "import pytest\n@pytest.mark.requires_model({})\ndef test_tone():\n    pass\n"
    suite.write({"test_chat.py": test.format("'llama3.2:1b'")})
    if args == ["test_mark.py"]:
        suite.write({"test_mark.py": test.format("temperature=1")})
    assert code == suite.run(*args).ret
    assert code == 0 or f"\n| {code} | " in page("reference/exit-codes")


@pytest.mark.usefixtures("suite")
def properties(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The properties of the items of the lists that *path* leads through."""
    found = schema
    for name in path:
        found = found["properties"][name]["items"]
        if "$ref" in found:
            found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return dict(found["properties"])


def test_the_page_of_the_record_has_the_fields_of_its_schema() -> None:
    path = Path(pytest_ollama_warmup.__file__).parent / "report" / "record.schema.json"
    schema = json.loads(path.read_text("utf-8"))
    rows = re.findall(r"^\| (`.*?) \|", page("reference/record"), re.M)
    names = {
        tuple(name.removesuffix("[]").split("[]."))
        for row in rows
        for name in re.findall(r"`(.*?)`", row)
    }
    for *inner, last in names:
        assert last in properties(schema, inner), (inner, last)
    for inner in ([], ["models"], ["tests"]):
        here = {last for *before, last in names if before == inner}
        lists = {before[0] for *before, _ in names if before and not inner}
        assert {*properties(schema, inner)} == here | lists
