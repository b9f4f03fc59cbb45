"""Other variables that hold the address of the server: ``--ollama-export``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.exports import Export, parse_export
from pytest_ollama_warmup.emulator import Emulator
from pytest_ollama_warmup.errors import BadSetting
from pytest_ollama_warmup.ollama.host import parse_host
from tests.conftest import LLAMA, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator

N2 = ["-n2"]
THERE = replace(LLAMA, present=True)
BASE, OPENAI = "--ollama-export=BASE_URL", "--ollama-export=OPENAI_URL={openai_base_url}"


@pytest.fixture
def other() -> Iterator[Emulator]:
    """A second server, which has the model."""
    with Emulator([THERE]) as emulator:
        yield emulator


def finds(url: str, *, late: str | None = None) -> dict[str, str]:
    """Return a suite that looks for *url* at import, and in its tests, for *late* or the same."""
    return {
        "conftest.py": f"""
            import os
            assert {url!r} == os.environ["BASE_URL"]
            assert {url + "/v1"!r} == os.environ["OPENAI_URL"]
        """,
        "test_it.py": f"""
            import os
            import pytest

            @pytest.mark.requires_model("llama3.2:1b")
            @pytest.mark.parametrize("n", range(2))
            def test_it(ollama_host, ollama_openai_base_url, n):
                assert {late or url!r} == os.environ["BASE_URL"] == ollama_host
                assert os.environ["OPENAI_URL"] == ollama_openai_base_url
        """,
    }


def sets_late(suite: Suite, url: str) -> None:
    """Let the conftest of *suite* set OLLAMA_HOST, which workers find in their environment."""
    path = suite.pytester.path / "conftest.py"
    text = path.read_text().replace("assert", f"if os.environ['OLLAMA_HOST'] != {url!r}: assert")
    path.write_text(text + f"os.environ['OLLAMA_HOST'] = {url!r}\n")


@pytest.mark.parametrize("workers", [[], N2])
@pytest.mark.parametrize("given", ["variable", "option", "file"])
def test_they_hold_the_address_when_conftests_are_imported(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str], given: str
) -> None:
    suite.ollama.add(THERE)
    # Another spelling, or another server.
    monkeypatch.setenv("OLLAMA_HOST", suite.ollama.url.removeprefix("http://") + "/")
    monkeypatch.setenv("BASE_URL", "http://their.own:1")
    suite.write(finds(suite.ollama.url))
    args, ini = [*workers], ""
    if given == "variable":
        args += [BASE, OPENAI]
    elif given == "option":
        monkeypatch.setenv("OLLAMA_HOST", "gpu:1")
        args += [f"--ollama-host={suite.ollama.url}", BASE, OPENAI]
    else:
        monkeypatch.delenv("OLLAMA_HOST")
        exports = "ollama_export =\n    BASE_URL\n    OPENAI_URL = {openai_base_url}\n"
        ini = f"ollama_host = {suite.ollama.url}\n{exports}"
    suite.write({"pytest.ini": f"[pytest]\n{ini}"})
    assert {"passed": 2} == suite.run(*args).counts


def test_what_the_command_line_says_adds_to_the_file_and_goes_before_it(suite: Suite) -> None:
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_export =\n    A={port}\n    B=file\n",
            "test_it.py": f"""
                import os

                def test_it():
                    found = [os.environ[name] for name in "ABC"]
                    assert [{str(suite.ollama.port)!r}, "option {{}}", {suite.ollama.url!r}] == found
            """,
        }
    )
    run = suite.run("--ollama-export=B=option {{}}", "--ollama-export=C")
    assert ({"passed": 1}, []) == (run.counts, suite.ollama.requests)


@pytest.mark.parametrize("before", [None, "theirs"])
def test_what_was_there_before_comes_back_after_the_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, other: Emulator, before: str | None
) -> None:
    monkeypatch.delenv("BASE_URL", raising=False)
    if before is not None:
        monkeypatch.setenv("BASE_URL", before)
    # In the process of the run that it is asked of; with an address that changes on the way.
    suite.write(finds(suite.ollama.url, late=other.url))
    sets_late(suite, other.url)
    suite.write(
        {
            "ask.py": f"""
                import os, sys, pytest
                assert 0 == pytest.main(["-p", "ollama_warmup", {BASE!r}, {OPENAI!r}])
                print("found", os.environ.get("BASE_URL"), os.environ.get("OPENAI_URL"))
            """
        }
    )
    done = suite.pytester.runpython(suite.pytester.path / "ask.py")
    assert f"found {before} None" in done.outlines


@pytest.mark.parametrize("workers", [[], N2])
def test_an_address_that_a_conftest_sets_counts(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    suite.write(finds(suite.ollama.url, late=other.url))
    sets_late(suite, other.url)
    assert {"passed": 2} == suite.run(BASE, OPENAI, *workers).counts


@pytest.mark.parametrize("workers", [[], N2])
def test_so_does_one_that_a_hook_names(suite: Suite, other: Emulator, workers: list[str]) -> None:
    suite.write(finds(suite.ollama.url, late=other.url))
    path = suite.pytester.path / "conftest.py"
    path.write_text(
        path.read_text()
        + "import pytest\n@pytest.hookimpl(optionalhook=True)\n"
        + f"def pytest_ollama_host(config): return {other.url!r}\n"
    )
    assert {"passed": 2} == suite.run(BASE, OPENAI, *workers).counts


AGREES = """
    import os
    import pytest

    AT_IMPORT = os.environ["BASE_URL"]

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(8))
    def test_it(ollama_host, n):
        assert AT_IMPORT == os.environ["BASE_URL"] == ollama_host
        assert ollama_host.endswith(os.environ["OLLAMA_HOST"])
        print("used", ollama_host)
"""


def test_each_worker_of_several_servers_has_its_own(suite: Suite, other: Emulator) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": AGREES})
    hosts = f"--ollama-host={suite.ollama.url},{other.url}"
    run = suite.run(hosts, BASE, "-n2", "-rP")
    assert {"passed": 8} == run.counts
    assert all(f"used {one.url}" in run.out for one in (suite.ollama, other))


def test_workers_that_move_to_another_server_take_them_along(suite: Suite, other: Emulator) -> None:
    suite.write({"test_it.py": AGREES.replace("AT_IMPORT ==", f"{other.url!r} ==")})
    hosts = f"--ollama-host={other.url},127.0.0.1:1"
    for args in (N2, []):
        run = suite.run(hosts, BASE, "--ollama-wait=0.2", *args)
        assert {"passed": 8} == run.counts


@pytest.mark.parametrize(
    ("args", "ini", "words"),
    [
        (["--ollama-export=A-B"], "", "'A-B' is not a valid --ollama-export. Expected NAME or NAME=TEMPLATE"),
        (["--ollama-export="], "", "'' is not a valid --ollama-export. Expected NAME or NAME=TEMPLATE"),
        (["--ollama-export=A={base}"], "", "Valid fields: {url}, {openai_base_url}, {scheme}, {host}, {port}. Write other braces twice."),
        (["--ollama-export=A={url"], "", "The template cannot be read: expected '}' before end of string."),
        (["--ollama-export=OLLAMA_HOST"], "", "The plugin sets OLLAMA_HOST itself. Leave it out."),
        ([], "1A", "'1A' is not a valid ollama_export in pytest.ini. Expected NAME or NAME=TEMPLATE"),
    ],
)  # fmt: skip
def test_a_bad_name_or_template_is_a_usage_error(
    suite: Suite, args: list[str], ini: str, words: str
) -> None:
    suite.write(
        {"test_it.py": "def test_it(): pass\n", "pytest.ini": f"[pytest]\nollama_export = {ini}\n"}
    )
    for workers in ([], N2):
        run = suite.run(*args, *workers)
        assert 4 == run.ret
        assert words in run.err
        assert "Traceback" not in run.out + run.err
    assert {"passed": 1} == suite.run(*args, "--ollama-off").counts


def test_nothing_is_set_where_the_plugin_is_off_or_the_address_is_bad(suite: Suite) -> None:
    suite.write({"test_it.py": "import os\ndef test_it(): assert 'BASE_URL' not in os.environ\n"})
    for arg in ("--ollama-off", "--ollama-host=h:99999"):
        assert {"passed": 1} == suite.run(BASE, arg).counts
    assert "BASE_URL" not in os.environ


@pytest.mark.parametrize(
    ("text", "address", "value"),
    [
        ("A", "gpu", "http://gpu:11434"),
        ("A", "https://me:p%40ss@gpu/a", "https://me:p%40ss@gpu:443/a"),
        ("A={openai_base_url}", "http://gpu/a", "http://gpu:80/a/v1"),
        ("A = {scheme}, {host}, {port}", "https://gpu", "https, gpu, 443"),
        ("A={host}:{port}", "[::1]:9", "[::1]:9"),
        ("A={host}", "me:pass@gpu", "gpu"),
        ("A=x={url}", "gpu:1", "x=http://gpu:1"),
        ("A={{url}} {{}}", "gpu:1", "{url} {}"),
        ("A=", "gpu:1", ""),
    ],
)
def test_a_template_is_filled(text: str, address: str, value: str) -> None:
    assert value == parse_export(text, "").value(parse_host(address, ""))


@pytest.mark.parametrize(
    "template",
    ["{}", "{0}", "{url[0]}", "{url.upper}", "{url!r}", "{port:5}", "{URL}", "}", "{url}}"],
)
def test_what_is_no_field_is_refused(template: str) -> None:
    with pytest.raises(BadSetting, match="is not a valid --x"):
        parse_export(f"A={template}", "--x")


def test_an_export_without_a_template_is_the_url() -> None:
    assert Export("A") == parse_export(" A ", "")
