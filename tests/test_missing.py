"""A model that is not ready: what the run does, and the message that says so."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
import respx

from pytest_ollama_warmup.emulator import ScriptedModel
from pytest_ollama_warmup.ollama.responses import UNKNOWN
from tests.conftest import LLAMA, ONE_TEST, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ollama_warmup.ollama.client import Client

ABSENT = ScriptedModel("phi9", in_registry=False)
PROCESSES = pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
TWO_TESTS = {
    "test_two.py": """
        import pytest

        @pytest.mark.requires_model("phi9")
        def test_phi(): pass

        def test_plain(): pass
    """
}
NO_SUCH = "phi9{origin}: the registry has no such model (pull model manifest: file does not exist). [unknown-model]"
CHECK = "→ Check name and tag; for an alias add --ollama-alias phi9=MODEL."


@PROCESSES
@pytest.mark.parametrize(
    ("on_unavailable", "ci", "counts"),
    [
        ("auto", "", {"passed": 1, "skipped": 1}),
        ("auto", "true", {"passed": 1, "error": 1}),
        ("auto", "false", {"passed": 1, "skipped": 1}),
        ("auto", "0", {"passed": 1, "skipped": 1}),
        ("skip", "true", {"passed": 1, "skipped": 1}),
        ("fail", "", {"passed": 1, "error": 1}),
    ],
)
def test_a_marked_model_that_is_missing_skips_or_fails_its_tests(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    on_unavailable: str,
    ci: str,
    counts: dict[str, int],
) -> None:
    monkeypatch.setenv("CI", ci)
    suite.write(TWO_TESTS)
    run = suite.run(f"--ollama-on-unavailable={on_unavailable}", "--ollama-pull=never", *args)
    assert counts == run.counts


@PROCESSES
def test_exit_ends_the_run_before_the_first_test(suite: Suite, args: list[str]) -> None:
    suite.write(TWO_TESTS)
    run = suite.run("--ollama-on-unavailable=exit", "-rA", *args)
    assert 2 == run.ret
    assert "PASSED" not in run.out
    assert (
        "ERROR: ollama: phi9 is not pulled. [not-pulled]\n"
        "wanted by test_two.py::test_phi\n"
        "→ Run 'ollama pull phi9', or pytest with --ollama-pull=missing; for an alias add "
        "--ollama-alias phi9=MODEL. --ollama-on-unavailable=skip goes on without it.\n"
    ) in run.out
    assert re.search("^!+ _pytest.outcomes.Exit: ollama: phi9: not pulled !+$", run.out, re.M)
    # The message has said it.
    assert [] == run.table
    assert 1 == run.out.count("phi9 is not pulled")


@PROCESSES
def test_a_run_that_ends_before_its_tests_leaves_no_green_junit_file(
    suite: Suite, args: list[str]
) -> None:
    suite.write(TWO_TESTS)
    suite.run("--ollama-on-unavailable=exit", "--junit-xml=junit.xml", *args)
    (junit,) = ElementTree.parse(suite.pytester.path / "junit.xml").getroot()
    assert ("1", "1") == (junit.get("errors"), junit.get("tests"))
    assert ["ollama-preload[phi9]"] == [case.get("name") for case in junit.iter("testcase")]
    assert "phi9 is not pulled" in ElementTree.tostring(junit, "unicode")


@PROCESSES
@pytest.mark.parametrize("cause", ["model", "server"])
def test_a_run_that_ends_at_session_start_leaves_a_junit_file_with_an_error(
    suite: Suite, args: list[str], cause: str
) -> None:
    suite.write(TWO_TESTS)
    if cause == "server":
        suite.ollama.stop()
    run = suite.run("--ollama-preload=phi9", "--ollama-wait=0", "--junit-xml=junit.xml", *args)
    assert 2 == run.ret
    (junit,) = ElementTree.parse(suite.pytester.path / "junit.xml").getroot()
    assert ("1", "1") == (junit.get("errors"), junit.get("tests"))
    assert ["ollama-preload[phi9]"] == [case.get("name") for case in junit.iter("testcase")]
    said = "no such model" if cause == "model" else "no Ollama at "
    assert said in ElementTree.tostring(junit, "unicode")


def test_with_v_a_run_that_ends_at_session_start_shows_its_models(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    run = suite.run("--ollama-preload=llama3.2:1b phi9", "-v")
    assert 2 == run.ret
    # Whether the other one is loaded by then nobody knows.
    assert [line for line in run.table if re.fullmatch(r"✗ phi9 +not in the registry", line)]


@PROCESSES
@pytest.mark.parametrize("on_unavailable", ["auto", "exit"])
def test_what_the_command_line_lists_ends_the_run_at_session_start(
    suite: Suite, args: list[str], on_unavailable: str
) -> None:
    suite.write(TWO_TESTS)
    run = suite.run("--ollama-preload=phi9", f"--ollama-on-unavailable={on_unavailable}", *args)
    assert 2 == run.ret
    assert "test session starts" not in run.out
    assert [] == run.table
    said = NO_SUCH.format(origin=" (from --ollama-preload)")
    otherwise = "--ollama-on-unavailable=skip goes on without it."
    assert (
        f"ERROR: ollama: {said}\n{CHECK} {otherwise}\nExit: ollama: phi9: not in the registry\n"
    ) == run.err
    assert said not in run.out
    assert "Traceback" not in run.out + run.err


@PROCESSES
@pytest.mark.parametrize("server", ["up", "down"])
def test_fail_lets_the_run_go_on_also_for_what_the_command_line_lists(
    suite: Suite, args: list[str], server: str
) -> None:
    if server == "down":
        suite.ollama.stop()
    suite.write(TWO_TESTS)
    run = suite.run(
        "--ollama-preload=phi9", "--ollama-on-unavailable=fail", "--ollama-wait=0", *args
    )
    assert {"passed": 1, "error": 1} == run.counts
    assert 1 == run.ret
    who = "wanted by test_two.py::test_phi: 1 test fails (from --ollama-on-unavailable)"
    assert f"\n        {who}\n        → " in run.out


@PROCESSES
def test_what_the_environment_lists_skips_its_tests(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi9")
    suite.write(TWO_TESTS)
    run = suite.run(*args)
    assert {"passed": 1, "skipped": 1} == run.counts
    message = NO_SUCH.format(origin=" (from OLLAMA_PRELOAD_MODELS)")
    who = "wanted by test_two.py::test_phi: 1 test skipped (--ollama-on-unavailable=fail fails it)"
    assert f"{message}\n{who}\n{CHECK}" in run.ours
    assert "✗ phi9   not in the registry   1 test" in run.table


@PROCESSES
@pytest.mark.parametrize(("ci", "ret"), [("", 0), ("1", 2)])
def test_an_unmarked_suite_without_its_model_warns_or_ends_in_ci(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, args: list[str], ci: str, ret: int
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi9")
    monkeypatch.setenv("CI", ci)
    suite.write({"test_plain.py": "def test_plain(): pass\n"})
    run = suite.run(*args)
    assert ret == run.ret
    assert ("OllamaWarmupWarning" in run.out) == (ret == 0)
    message = NO_SUCH.format(origin=" (from OLLAMA_PRELOAD_MODELS)")
    assert 1 == (run.out + run.err).count(message)


def test_the_warning_can_be_filtered_by_its_class(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi9")
    suite.write({"test_plain.py": "def test_plain(): pass\n"})
    run = suite.run("-W", "ignore::pytest_ollama_warmup.OllamaWarmupWarning")
    assert {"passed": 1} == run.counts
    assert "OllamaWarmupWarning" not in run.out


def test_where_warnings_are_errors_an_unmarked_suite_runs_as_without_us(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi9")
    suite.write({"test_plain.py": "def test_plain(): pass\n"})
    run = suite.run("-W", "error")
    assert {"passed": 1} == run.counts
    assert "phi9: listed, and not ready; all tests run without" in run.ours


def test_the_marks_own_policy_wins(suite: Suite) -> None:
    suite.write(
        {
            "test_own.py": """
                import pytest

                @pytest.mark.requires_model("phi9", on_unavailable="fail")
                def test_fails(): pass

                @pytest.mark.requires_model("phi9", on_unavailable="skip")
                def test_skips(): pass
            """
        }
    )
    for on_unavailable in ("skip", "fail"):
        run = suite.run(f"--ollama-on-unavailable={on_unavailable}")
        assert {"skipped": 1, "error": 1} == run.counts
        assert (
            "\nwanted by test_own.py::test_fails and 1 more: "
            "1 test fails (from the mark), 1 test skipped (from the mark)\n"
        ) in run.ours[-1]


def test_a_mark_that_ends_the_run_is_named(suite: Suite) -> None:
    suite.write(
        {
            "test_own.py": """
                import pytest

                @pytest.mark.requires_model("phi9", on_unavailable="exit")
                def test_exits(): pass
            """
        }
    )
    run = suite.run("--ollama-on-unavailable=skip")
    assert 2 == run.ret
    assert "The mark of a test that needs it says on_unavailable='exit'." in run.out


def test_a_skip_is_reported_where_the_test_is_with_the_section_that_helps(suite: Suite) -> None:
    suite.write(TWO_TESTS)
    run = suite.run("-rs")
    assert "SKIPPED [1] test_two.py:3: phi9: not pulled [not-pulled]\n" in run.out


@PROCESSES
def test_an_expected_failure_is_an_error_when_its_model_is_missing(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "test_x.py": """
                import pytest

                @pytest.mark.xfail
                @pytest.mark.requires_model("phi9")
                def test_expected(): assert False
            """
        }
    )
    run = suite.run("--ollama-on-unavailable=fail", *args)
    assert {"error": 1} == run.counts
    assert 1 == run.ret
    assert "Traceback" not in run.out


def test_pytests_own_skips_and_the_suites_setup_come_first(suite: Suite) -> None:
    suite.write(
        {
            "conftest.py": """
                import pytest

                def pytest_runtest_setup(item):
                    if item.name == "test_conftest":
                        pytest.skip("the conftest's own reason")
            """,
            "test_order.py": """
                import pytest

                @pytest.mark.skipif("True", reason="the text's own reason")
                @pytest.mark.requires_model("phi9")
                def test_text(): pass

                @pytest.mark.requires_model("phi9")
                def test_conftest(): pass
            """,
        }
    )
    run = suite.run("--ollama-on-unavailable=fail", "-rs")
    assert {"skipped": 2} == run.counts
    assert "the text's own reason" in run.out
    assert "the conftest's own reason" in run.out


# The messages of a user's first week.


@pytest.mark.usefixtures("ollama_in_path")
def test_message_1_no_server(suite: Suite, monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    monkeypatch.setenv("OLLAMA_HOST", nobody)
    suite.write(
        {
            "test_many.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(60))
                def test_one(n): pass
            """
        }
    )
    run = suite.run("--ollama-wait=0.3")
    assert {"skipped": 60} == run.counts
    assert (
        f"no Ollama at {nobody} (from OLLAMA_HOST): connection refused for 0.3 s. [server-unreachable]\n"
        "wanted by test_many.py::test_one[0] and 59 more: 60 tests skipped\n"
        "→ Start it with 'ollama serve', or set --ollama-host."
    ) in run.ours


def test_message_2_not_pulled(suite: Suite) -> None:
    suite.write(
        {
            "tests/test_chat.py": """
                import pytest
                pytestmark = pytest.mark.requires_model("llama3.2:1b")

                def test_tone(): pass

                @pytest.mark.parametrize("n", range(11))
                def test_more(n): pass
            """
        }
    )
    run = suite.run()
    assert (
        "llama3.2:1b is not pulled. [not-pulled]\n"
        "wanted by tests/test_chat.py::test_tone and 11 more: 12 tests skipped\n"
        "→ Run 'ollama pull llama3.2:1b', or pytest with --ollama-pull=missing."
    ) in run.ours


@PROCESSES
def test_message_3_a_list_without_quotes(suite: Suite, args: list[str]) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload", "llama3.2:1b", "nomic-embed-text", *args)
    assert 4 == run.ret
    assert (
        "ERROR: file or directory not found: nomic-embed-text [models-as-paths]\n"
        "looks like a model: --ollama-preload takes one value, quote the list: "
        '--ollama-preload "llama3.2:1b nomic-embed-text".\n'
    ) in run.err + "\n"
    assert [] == suite.ollama.requests


def test_message_4_unknown_to_the_registry(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    suite.write(
        {**TWO_TESTS, "pyproject.toml": '[tool.pytest.ini_options]\nollama_preload = ["phi9"]\n'}
    )
    run = suite.run()
    message = NO_SUCH.format(origin=" (from ollama_preload in pyproject.toml)")
    who = "wanted by test_two.py::test_phi: 1 test fails (CI is set; --ollama-ci=no skips it)"
    assert f"{message}\n{who}\n{CHECK}" in run.ours
    # Where the test is, and in the table, a few words are enough.
    assert 1 == run.out.count("the registry has no such model")
    assert "Failed: phi9: not in the registry" in run.out


@pytest.mark.parametrize(
    ("args", "tests"),
    [
        ([], "1 test skipped (--ollama-on-unavailable=fail fails it)"),
        (["--ollama-on-unavailable=skip"], "1 test skipped (from --ollama-on-unavailable)"),
        (["--ollama-on-unavailable=fail"], "1 test fails (from --ollama-on-unavailable)"),
    ],
)
def test_a_skip_after_a_pull_that_was_asked_for_says_how_to_fail(
    suite: Suite, args: list[str], tests: str
) -> None:
    suite.write(TWO_TESTS)
    run = suite.run("--ollama-pull=missing", *args)
    message = NO_SUCH.format(origin="")
    assert f"{message}\nwanted by test_two.py::test_phi: {tests}\n{CHECK}" in run.ours


def test_a_pull_that_an_option_forbids_is_not_advised(suite: Suite) -> None:
    suite.write(ONE_TEST)
    run = suite.run("--ollama-pull=never")
    assert (
        "llama3.2:1b is not pulled, by --ollama-pull=never. [not-pulled]\n"
        "wanted by test_chat.py::test_tone: 1 test skipped\n"
        "→ Run 'ollama pull llama3.2:1b'."
    ) in run.ours


@pytest.mark.parametrize("mark", ["require_model", "requires_models", "required_ollama_model"])
def test_a_fixture_beside_a_mistyped_mark_says_what_was_meant(suite: Suite, mark: str) -> None:
    suite.write(
        {
            "test_slip.py": f"""
                import pytest

                @pytest.mark.usefixtures("tmp_path")
                @pytest.mark.{mark}("llama3.2:1b")
                def test_slip(ollama_model): pass
            """
        }
    )
    run = suite.run()
    assert 1 == run.counts["error"]
    assert (
        "test_slip uses ollama_model without naming a model, and no model is listed. Its mark "
        f"{mark} names none: did you mean requires_model? [no-model-named]"
    ) in run.out


@pytest.mark.parametrize("pull", ["auto", "missing"])
def test_a_mistyped_alias_is_meant_before_any_model(suite: Suite, pull: str) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            "test_slip.py": """
                import pytest

                @pytest.mark.requires_model("chatt")
                def test_slip(): pass
            """
        }
    )
    run = suite.run("--ollama-alias=chat=llama3.2:1b", f"--ollama-pull={pull}")
    assert {"skipped": 1} == run.counts
    (said,) = (text for text in run.ours if text.startswith("chatt"))
    assert " Did you mean the alias chat? [" in said.splitlines()[0]
    assert "--ollama-alias" not in said.splitlines()[-1]


def test_of_tests_that_name_no_model_the_first_is_told_and_the_others_counted(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write(
        {
            **ONE_TEST,
            "test_none.py": """
                def test_a(ollama_model): pass
                def test_b(ollama_model): pass
                def test_c(ollama_options): pass
            """,
        }
    )
    run = suite.run()
    assert {"passed": 1, "error": 3} == run.counts
    (said,) = (text for text in run.ours if "[no-model-named]" in text)
    assert said.startswith("test_a uses ollama_model without naming a model")
    assert said.endswith("\nso do 2 more tests")
    assert "test_c uses ollama_options without naming a model" in run.out


def test_message_6_a_fixture_without_a_mark(suite: Suite) -> None:
    for name in ("chat", "embed", "vision"):
        suite.ollama.add(ScriptedModel(name, present=True))
    suite.write({"test_rag.py": "def test_rag(ollama_model): pass\n"})
    run = suite.run("--ollama-preload", "chat embed vision")
    message = (
        "test_rag uses ollama_model without naming a model, and 3 are listed (chat, embed, vision). "
        'Add @pytest.mark.requires_model("chat"), or use ollama_models["chat"].name. [no-model-named]'
    )
    assert {"error": 1} == run.counts
    assert message in run.ours
    assert f"\n{message}\n" in run.out


def test_message_7_out_of_memory(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    words = "model requires more system memory (41 GiB) than is available (15 GiB)"
    suite.ollama.add(ScriptedModel("llama3.1:70b", present=True, load_error=words))
    suite.ollama.add(ScriptedModel("qwen3:4b", present=True))
    suite.write(
        {
            "test_big.py": """
                import pytest

                @pytest.mark.requires_model("qwen3:4b")
                def test_small(): pass

                @pytest.mark.requires_model("llama3.1:70b")
                @pytest.mark.parametrize("n", range(4))
                def test_big(n): pass
            """
        }
    )
    suite.run("-k", "small")
    run = suite.run()
    assert (
        f'llama3.1:70b does not load: "{words}". [load-failed]\n'
        "wanted by test_big.py::test_big[0] and 3 more: 4 tests fail (CI is set; --ollama-ci=no skips them)\n"
        "→ Try a smaller tag or num_ctx; loaded now: qwen3:4b."
    ) in run.ours
    assert "✗ llama3.1:70b   not enough memory   4 tests" in run.table


def test_message_8_another_service(suite: Suite) -> None:
    page = b"<html><head><title>Sign in</title></head><body>please</body></html>"
    suite.ollama.answer_all_with(200, "text/html", page)
    suite.write(ONE_TEST)
    run = suite.run()
    url = suite.ollama.url
    assert (
        f"{url} (from OLLAMA_HOST) answers, but is not Ollama "
        '(GET /api/version: 200 text/html "Sign in"). Another service? [not-ollama]\n'
        "wanted by test_chat.py::test_tone: 1 test skipped\n"
        "→ Set --ollama-host."
    ) in run.ours


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (
            200,
            "application/json",
            b'{"hello": 1}',
            'not Ollama (GET /api/version: 200 application/json "{"hello": 1}")',
        ),
        (
            401,
            "application/json",
            b'{"error": "no key"}',
            'refuses access (HTTP 401 "no key"). [access-denied]\n→ Set OLLAMA_API_KEY',
        ),
        (
            403,
            "text/plain",
            b"",
            "refuses access (HTTP 403). [access-denied]\n→ An Ollama bound to loopback answers so",
        ),
        (
            404,
            "text/plain",
            b"404 page not found",
            'not Ollama (GET /api/version: 404 text/plain "404 page not found")',
        ),
    ],
    ids=["json", "401", "403", "404"],
)
def test_a_service_that_does_not_serve_is_told_apart_at_once(
    suite: Suite, status: int, kind: str, body: bytes, message: str
) -> None:
    suite.ollama.answer_all_with(status, kind, body)
    suite.write(ONE_TEST)
    # Waiting would not help: with a limit of an hour, this test would not end.
    run = suite.run("--ollama-preload=llama3.2:1b", "--ollama-wait=3600")
    assert 2 == run.ret
    assert message in run.err
    assert 1 == len([one for one in suite.ollama.requests if one.path == "/api/version"])


def test_a_server_that_fails_to_answer_is_asked_until_the_limit(suite: Suite) -> None:
    suite.ollama.answer_all_with(503, "text/plain", b"starting")
    suite.write(ONE_TEST)
    run = suite.run("--ollama-wait=0.4")
    assert f"no Ollama at {suite.ollama.url} (from OLLAMA_HOST): HTTP 503 for 0.4 s." in run.out
    assert len(suite.ollama.requests) > 1


@pytest.fixture
def plain_text_server() -> Iterator[str]:
    """A service that speaks, but neither HTTP nor TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"-ERR unknown command\r\n\r\n")
                    connection.recv(1024)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("http", "answers, but is not Ollama (GET /api/version: no HTTP:"),
        ("https", "no secure connection to https://"),
    ],
)
def test_a_service_of_another_protocol_is_named(
    suite: Suite, plain_text_server: str, scheme: str, message: str
) -> None:
    suite.write(ONE_TEST)
    run = suite.run(f"--ollama-host={scheme}://{plain_text_server}")
    assert {"skipped": 1} == run.counts
    assert message in run.out
    assert "Traceback" not in run.out + run.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pull_error": "unauthorized: access denied"}, "(from --ollama-preload) could not be pulled: unauthorized: access denied. [pull-failed]\n→ The registry wants a login."),
        ({"damaged": True}, """does not load: '"llama3.2:1b" does not support generate'. [load-failed]\n→ The server calls it a completion model, so its weights are damaged"""),
    ],
    ids=["unauthorized", "damaged"],
)  # fmt: skip
def test_what_goes_wrong_at_the_server_is_said_with_its_cure(
    suite: Suite, changes: dict[str, object], message: str
) -> None:
    suite.ollama.add(replace(LLAMA, **changes))  # type: ignore[arg-type]
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload=llama3.2:1b")
    assert 2 == run.ret
    # Who wants it is known after collection only, and the load may fail before.
    said = re.sub(r"\nwanted by .*", "", run.out + run.err)
    assert message in said.replace("\n        →", "\n→")


def test_a_busy_server_is_asked_again(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True, busy=2))
    suite.write(ONE_TEST)
    run = suite.run()
    assert {"passed": 1} == run.counts
    assert "llama3.2:1b waits: the server's queue is full" in run.ours


def test_escapes_in_a_servers_words_do_not_reach_the_terminal(suite: Suite) -> None:
    words = "\x1b[2J\x1b]0;owned\x07bad\r\nnews\x9b31m"
    suite.ollama.add(replace(LLAMA, present=True, load_error=words))
    suite.write(ONE_TEST)
    run = suite.run("-rs")
    assert '"bad news' in run.out
    assert not {"\x1b", "\x07", "\x9b"} & set(run.out)


def test_keys_are_never_shown(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "sk-very-secret")
    suite.ollama.answer_all_with(401, "application/json", b'{"error": "bad key sk-very-secret"}')
    suite.write(ONE_TEST)
    run = suite.run("--ollama-preload=llama3.2:1b", "-vv")
    assert "Bearer sk-very-secret" == suite.ollama.requests[0].headers["authorization"]
    assert "sk-very-secret" not in run.out + run.err
    assert 'HTTP 401 "bad key ***"' in run.err


@PROCESSES
@pytest.mark.parametrize(
    ("host", "name", "value", "message"),
    [
        pytest.param(
            "https://10.0.0.1",
            "SSL_CERT_FILE",
            "/nonexistent",
            "the certificates of SSL_CERT_FILE cannot be read (No such file",
            marks=pytest.mark.skipif(
                version("httpx").startswith("0.27"), reason="httpx 0.27 takes its own instead"
            ),
        ),
        (
            "http://10.255.255.1",
            "NO_PROXY",
            "[::1",
            "a proxy variable cannot be used (Invalid port: ':1'). [server-unreachable]\n",
        ),
    ],
    ids=["certificates", "proxy"],
)
def test_bad_variables_of_the_network_are_named(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    host: str,
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    monkeypatch.setenv(name, value)
    suite.write(ONE_TEST)
    run = suite.run(*args)
    assert {"skipped": 1} == run.counts
    assert message in run.out
    assert "Traceback" not in run.out + run.err


@PROCESSES
def test_a_name_with_a_providers_prefix_gets_a_hint(suite: Suite, args: list[str]) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write({"test_it.py": ONE_TEST["test_chat.py"].replace('"llama', '"ollama/llama')})
    run = suite.run(*args)
    assert {"skipped": 1} == run.counts
    assert "with --ollama-pull=missing" in run.out
    assert "is not pulled. Did you mean llama3.2:1b, which is there?" in run.out
    assert "Correct the name, or run 'ollama pull " in run.out


def test_so_does_a_name_that_the_registry_does_not_know(suite: Suite) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    run = suite.run("--ollama-preload=llama3.2:1c")
    assert 2 == run.ret
    assert "Did you mean llama3.2:1b, which is there?" in run.out + run.err


@pytest.mark.parametrize(
    "show", [(404, "404 page not found"), (405, "no"), (404, '{"detail": "Not Found"}')]
)
def test_a_server_without_api_show_is_known_by_what_it_lists(
    client: Client, monkeypatch: pytest.MonkeyPatch, show: tuple[int, str]
) -> None:
    listed = {"models": [{"name": "m:latest", "digest": "ab" * 32, "size": 5}]}
    with respx.mock(base_url=client.host.url) as server:
        server.post("/api/show").respond(show[0], text=show[1])
        server.get("/api/tags").respond(json=listed)
        assert client.show("m") is UNKNOWN
        assert None is client.show("other")


@pytest.mark.parametrize(
    "words", ["model 'm' not found", 'model "m" not found, try pulling it first']
)
def test_ollamas_own_words_need_no_second_question(client: Client, words: str) -> None:
    with respx.mock(base_url=client.host.url) as server:
        server.post("/api/show").respond(404, json={"error": words})
        assert None is client.show("m")
