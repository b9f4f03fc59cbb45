"""Which server a run uses and who says so, and what OLLAMA_HOST then holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import Emulator
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator

THERE = replace(LLAMA, present=True)
WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
LIST = "--ollama-preload=llama3.2:1b"


@pytest.fixture
def other() -> Iterator[Emulator]:
    """A second server, which has the model."""
    with Emulator([THERE]) as emulator:
        yield emulator


def a_hook(url: str) -> str:
    return f"""
        import os, pathlib, pytest

        CALLS = pathlib.Path(__file__).parent / "calls"

        @pytest.hookimpl(optionalhook=True)
        def pytest_ollama_host(config):
            with CALLS.open("a") as file:
                file.write(f"{{os.getpid()}} {{hasattr(config, 'workerinput')}}\\n")
            return {url!r}
    """


def calls(suite: Suite) -> list[str]:
    path = suite.pytester.path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def asks_where(url: str, value: str) -> str:
    return ASKS_WHERE.replace("URL", url).replace("VALUE", value)


def variable(server: Emulator) -> str:
    """What OLLAMA_HOST is set to for *server*."""
    return server.url.removeprefix("http://")


ASKS_WHERE = """
    import os, pytest

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(4))
    def test_where(ollama_host, ollama_openai_base_url, n):
        assert "URL" == ollama_host
        assert "VALUE" == os.environ["OLLAMA_HOST"]
        assert "URL/v1" == ollama_openai_base_url
"""


# OLLAMA_HOST


def expects(
    value: str | None, url: str, source: str, *, at_import: str | None, marked: bool = False
) -> dict[str, str]:
    """Return a suite whose tests, and its conftest in every process, check what they find."""
    mark = '@pytest.mark.requires_model("llama3.2:1b")\n' if marked else ""
    return {
        "conftest.py": f"""
            import os
            found = os.environ.get("OLLAMA_HOST")
            assert {at_import!r} == found, found
        """,
        "test_it.py": f"""
import os, pytest
from pytest_ollama_warmup.session.state import settings_of

{mark}@pytest.mark.parametrize("n", range(2))
def test_it(ollama_host, ollama_openai_base_url, pytestconfig, n):
    assert {value!r} == os.environ.get("OLLAMA_HOST")
    assert {url!r} == ollama_host
    assert {url + "/v1"!r} == ollama_openai_base_url
    assert {source!r} == settings_of(pytestconfig).host.source
""",
    }


@WORKERS
@pytest.mark.parametrize(
    ("spelled", "url"),
    [
        ("127.0.0.1:PORT", "http://127.0.0.1:PORT"),
        ("localhost:PORT", "http://localhost:PORT"),
        ("LocalHost:PORT", "http://localhost:PORT"),
        (":PORT", "http://127.0.0.1:PORT"),
        ("0.0.0.0:PORT", "http://127.0.0.1:PORT"),
        ("http://127.0.0.1:PORT", "http://127.0.0.1:PORT"),
        ("http://127.0.0.1:PORT/", "http://127.0.0.1:PORT"),
        ("HTTP://0.0.0.0:PORT", "http://127.0.0.1:PORT"),
        (" '127.0.0.1:PORT' ", "http://127.0.0.1:PORT"),
        ('"localhost:PORT/"', "http://localhost:PORT"),
    ],
)
def test_a_variable_that_names_the_server_is_left_alone(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str], spelled: str, url: str
) -> None:
    suite.ollama.add(THERE)
    port = suite.ollama.url.rpartition(":")[2]
    spelled, url = spelled.replace("PORT", port), url.replace("PORT", port)
    monkeypatch.setenv("OLLAMA_HOST", spelled)
    suite.write(expects(spelled, url, "OLLAMA_HOST", at_import=spelled, marked=True))
    assert {"passed": 2} == suite.run(LIST, *workers).counts
    assert 1 == len(suite.ollama.loads)
    # The option says the same in other words.
    other = suite.ollama.url.replace("127.0.0.1", "localhost")
    suite.write(expects(spelled, other, "--ollama-host", at_import=spelled))
    assert {"passed": 2} == suite.run(f"--ollama-host={other}", *workers).counts


@WORKERS
@pytest.mark.parametrize("given", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize(
    ("args", "ini", "url", "source"),
    [
        ([], "ollama_preload = a", "http://127.0.0.1:11434", "default"),
        (["--ollama-host=http://localhost:11434/"], "", "http://localhost:11434", "--ollama-host"),
        ([], "ollama_host = 0.0.0.0", "http://127.0.0.1:11434", "ollama_host in pytest.ini"),
    ],
    ids=["listed", "option", "ini"],
)
def test_a_variable_that_is_not_set_stays_so_with_the_usual_address(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    given: str | None,
    args: list[str],
    ini: str,
    url: str,
    source: str,
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    if given is not None:
        monkeypatch.setenv("OLLAMA_HOST", given)
    suite.write(expects(given, url, source, at_import=given))
    suite.write({"pytest.ini": f"[pytest]\n{ini}\n"})
    assert {"passed": 2} == suite.run(*args, *workers).counts


@WORKERS
@pytest.mark.parametrize(
    ("address", "value", "url"),
    [
        ("gpu", "gpu:11434", "http://gpu:11434"),
        ("http://gpu", "gpu:80", "http://gpu:80"),
        ("http://LOCALHOST:5000/", "localhost:5000", "http://localhost:5000"),
        ("[::1]:5000", "[::1]:5000", "http://[::1]:5000"),
        ("https://gpu", "https://gpu:443", "https://gpu:443"),
        ("http://gpu:5000/ollama/", "http://gpu:5000/ollama", "http://gpu:5000/ollama"),
    ],
)
@pytest.mark.parametrize("how", ["option", "ini"])
def test_for_another_server_it_is_host_and_port_or_else_a_url(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    address: str,
    value: str,
    url: str,
    how: str,
) -> None:
    args = []
    if how == "option":
        monkeypatch.setenv("OLLAMA_HOST", "gpu:port")
        args, source = [f"--ollama-host={address}"], "--ollama-host"
    else:
        monkeypatch.delenv("OLLAMA_HOST")
        suite.write({"pytest.ini": f"[pytest]\nollama_host = {address}\n"})
        source = "ollama_host in pytest.ini"
    suite.write(expects(value, url, source, at_import=value))
    assert {"passed": 2} == suite.run(*args, *workers).counts


@WORKERS
@pytest.mark.parametrize("address", ["localhost:PORT", "http://127.0.0.1:PORT/"])
def test_a_hook_that_names_the_same_server_leaves_the_variable_alone(
    suite: Suite, workers: list[str], address: str
) -> None:
    suite.ollama.add(THERE)
    given = suite.ollama.url
    address = address.replace("PORT", given.rpartition(":")[2])
    url, source = address.rstrip("/"), "pytest_ollama_host in conftest.py"
    url = url if url.startswith("http") else f"http://{url}"
    files = expects(given, url, source, at_import=given, marked=True)
    suite.write({**files, "conftest.py": a_hook(address)})
    assert {"passed": 2} == suite.run(*workers).counts


@WORKERS
def test_a_run_inside_of_a_test_sees_the_server_of_the_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    inner = expects("gpu:5000", "http://gpu:5000", "OLLAMA_HOST", at_import="gpu:5000")
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_host = gpu:5000\n",
            "test_outer.py": """
                import subprocess, sys

                def test_outer():
                    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "inner"]
                    subprocess.run(command, check=True)
            """,
            "inner/pytest.ini": "[pytest]\n",
            **{f"inner/{name}": text for name, text in inner.items()},
        }
    )
    assert {"passed": 1} == suite.run("test_outer.py", *workers).counts


# The hook


@WORKERS
@pytest.mark.parametrize("args", [[], [LIST]], ids=["marked", "listed"])
def test_a_hook_of_the_suite_names_the_server_once(
    suite: Suite, other: Emulator, workers: list[str], args: list[str]
) -> None:
    test = asks_where(other.url, variable(other))
    suite.write({"conftest.py": a_hook(other.url), "test_it.py": test})
    run = suite.run("-v", *args, *workers)
    assert {"passed": 4} == run.counts
    assert 1 == len(other.loads)
    assert [] == suite.ollama.requests
    (call,) = calls(suite)
    assert call.endswith("False")
    assert f"{other.url} (pytest_ollama_host in conftest.py)" in run.out
    assert "asking pytest_ollama_host in conftest.py for a server" in run.ours


def test_a_run_that_needs_no_model_does_not_ask_the_hook(suite: Suite, other: Emulator) -> None:
    suite.write({"conftest.py": a_hook(other.url), "test_it.py": "def test_it(): pass\n"})
    run = suite.run()
    assert ({"passed": 1}, [], []) == (run.counts, calls(suite), run.ours)


@WORKERS
def test_with_a_hook_the_address_alone_is_a_need(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    suite.write(
        {
            "conftest.py": a_hook(other.url),
            "test_it.py": f"def test_it(ollama_openai_base_url): assert '{other.url}/v1' == ollama_openai_base_url\n",
        }
    )
    assert {"passed": 1} == suite.run(*workers).counts
    assert {"/api/version", "/api/ps"} == {one.path for one in other.requests}


def test_the_command_line_goes_before_the_hook(suite: Suite, other: Emulator) -> None:
    suite.ollama.add(THERE)
    suite.write({"conftest.py": a_hook(other.url), **ONE_TEST})
    assert {"passed": 1} == suite.run(f"--ollama-host={suite.ollama.url}").counts
    assert ([], 1) == (calls(suite), len(suite.ollama.loads))


def test_a_hook_that_returns_none_leaves_the_usual_server(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write({"conftest.py": "def pytest_ollama_host(config): return None\n", **ONE_TEST})
    assert {"passed": 1} == suite.run().counts
    assert 1 == len(suite.ollama.loads)


@WORKERS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 7", "pytest_ollama_host in conftest.py returned 7; expected a string such as 'http://host:11434'"),
        ("return 'ftp://x'", "is not an address of an Ollama server: scheme ftp"),
        ("import pytest; pytest.importorskip('no_such_library')", "pytest_ollama_host in conftest.py failed at conftest.py:2: Skipped: could not import 'no_such_library'"),
        ("import pytest; pytest.fail('no docker')", "pytest_ollama_host in conftest.py failed at conftest.py:2: Failed: no docker"),
        ("raise OSError('no docker')", "pytest_ollama_host in conftest.py failed at conftest.py:2: OSError: no docker"),
    ],
    ids=["number", "scheme", "skips", "fails", "raises"],
)  # fmt: skip
def test_a_hook_that_gives_no_server_ends_the_run_with_its_place(
    suite: Suite, workers: list[str], body: str, message: str
) -> None:
    suite.write({"conftest.py": f"def pytest_ollama_host(config):\n    {body}\n", **ONE_TEST})
    run = suite.run(*workers)
    assert 4 == run.ret
    assert message in run.err + run.out
    assert "INTERNALERROR" not in run.err + run.out


@WORKERS
@pytest.mark.parametrize("args", [[], [LIST]], ids=["marked", "listed"])
def test_a_hook_that_is_loaded_too_late_ends_the_run_with_its_file(
    suite: Suite, other: Emulator, workers: list[str], args: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write({"sub/conftest.py": a_hook(other.url), "sub/test_it.py": ONE_TEST["test_chat.py"]})
    run = suite.run(*args, *workers)
    assert 4 == run.ret
    assert "the hook pytest_ollama_host in sub/conftest.py is loaded too late" in run.err + run.out
    assert [] == calls(suite)


def test_a_hook_beside_the_tests_that_are_named_is_in_time(suite: Suite, other: Emulator) -> None:
    suite.write({"sub/conftest.py": a_hook(other.url), "sub/test_it.py": ONE_TEST["test_chat.py"]})
    assert {"passed": 1} == suite.run("sub").counts
    assert 1 == len(other.loads)


@WORKERS
def test_a_server_that_the_hook_names_and_nobody_answers_at(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    other.stop()
    suite.write({"conftest.py": a_hook(other.url), **ONE_TEST})
    run = suite.run("--ollama-wait=0", "-rs", *workers)
    assert {"skipped": 1} == run.counts
    assert f"no Ollama at {other.url} (from pytest_ollama_host in conftest.py)" in run.out


# The fixture


def a_fixture(url: str) -> str:
    return f"""
        import pytest

        @pytest.fixture(scope="session")
        def ollama_host():
            return {url!r}
    """


@WORKERS
def test_a_fixture_of_the_suite_gives_its_tests_another_server(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            "test_here.py": asks_where(suite.ollama.url, suite.ollama.url),
            "sub/conftest.py": a_fixture(other.url),
            "sub/test_there.py": f"""
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(4))
                def test_marked(n): pass

                @pytest.mark.requires_model("llama3.2:1b")
                def test_named(ollama_host, ollama_model, ollama_models):
                    assert "{other.url}" == ollama_host
                    assert "llama3.2:1b" == ollama_model == ollama_models[ollama_model].name
            """,
        }
    )
    run = suite.run("-v", *workers)
    assert {"passed": 9} == run.counts
    assert (1, 1) == (len(suite.ollama.loads), len(other.loads))
    assert f"at {other.url}" in run.out


@WORKERS
def test_what_is_missing_there_skips_or_fails_the_test(
    suite: Suite, other: Emulator, workers: list[str]
) -> None:
    suite.write(
        {
            "conftest.py": a_fixture(other.url),
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("phi9")
                def test_skips(): pass

                @pytest.mark.requires_model("phi9", on_unavailable="fail")
                def test_fails(): pass

                @pytest.mark.xfail
                @pytest.mark.requires_model("phi9", on_unavailable="fail")
                def test_expected_to_fail(): pass

                @pytest.mark.requires_model("llama3.2:1b", capabilities=["tools"])
                def test_cannot(): pass
            """,
        }
    )
    run = suite.run("-rs", *workers)
    assert {"skipped": 2, "error": 2} == run.counts
    assert "phi9 is not pulled" in run.out
    assert "llama3.2:1b cannot do tools" in run.out
    assert [] == suite.ollama.requests


def test_models_of_the_command_line_are_prepared_before_any_fixture(
    suite: Suite, other: Emulator
) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {"conftest.py": a_fixture(other.url), "test_it.py": "def test_it(ollama_model): pass\n"}
    )
    assert {"passed": 1} == suite.run(LIST).counts
    assert (1, 1) == (len(suite.ollama.loads), len(other.loads))


@pytest.mark.parametrize(
    ("value", "message"),
    [("7", "the fixture ollama_host returned 7"), ("'h:abc'", "'h:abc' (from the fixture ollama_host)")],
)  # fmt: skip
def test_a_fixture_that_gives_no_address_is_told_so(suite: Suite, value: str, message: str) -> None:
    conftest = (
        f"import pytest\n@pytest.fixture(scope='session')\ndef ollama_host(): return {value}\n"
    )
    suite.write({"conftest.py": conftest, **ONE_TEST})
    run = suite.run()
    assert {"error": 1} == run.counts
    assert message in run.out


def test_a_hook_may_end_the_run_itself(suite: Suite) -> None:
    hook = "import pytest\ndef pytest_ollama_host(config): pytest.exit('no docker', returncode=7)\n"
    suite.write({"conftest.py": hook, **ONE_TEST})
    run = suite.run()
    assert (7, True) == (run.ret, "no docker" in run.out)


def test_an_empty_address_is_that_of_a_variable_that_is_not_set(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    assert {"passed": 1} == suite.run("--ollama-host=").counts
    assert 1 == len(suite.ollama.loads)


def test_looking_asks_neither_hook_nor_server(suite: Suite, other: Emulator) -> None:
    suite.write({"conftest.py": a_hook(other.url) + a_fixture(other.url), **ONE_TEST})
    for look in ("--collect-only", "--setup-only", "--setup-plan", "--fixtures"):
        assert 0 == suite.run(look, LIST).ret
    assert ([], [], []) == (calls(suite), other.requests, suite.ollama.requests)


def test_off_leaves_hook_and_fixture_alone(suite: Suite, other: Emulator) -> None:
    suite.write({"conftest.py": a_hook(other.url) + a_fixture(other.url), **ONE_TEST})
    assert {"passed": 1} == suite.run("--ollama-off", LIST).counts
    assert ([], [], []) == (calls(suite), other.requests, suite.ollama.requests)


@pytest.mark.parametrize("path", ["/v1", "/api/generate"])
def test_a_path_of_the_api_in_the_address_is_left_out_and_said(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    monkeypatch.setenv("OLLAMA_HOST", suite.ollama.url + path)
    suite.write(
        {
            "test_it.py": f"""
                import os
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_host, ollama_openai_base_url):
                    assert {suite.ollama.url!r} == ollama_host
                    assert ollama_host + "/v1" == ollama_openai_base_url
                    # Others read it as it is.
                    assert {suite.ollama.url + path!r} == os.environ["OLLAMA_HOST"]
            """
        }
    )
    run = suite.run()
    assert {"passed": 1} == run.counts
    told = f"{path} at the end of the address (from OLLAMA_HOST) is a path of the API: {suite.ollama.url} is used."
    assert 1 == run.ours.count(told)
