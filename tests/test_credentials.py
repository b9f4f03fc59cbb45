"""What a gateway before the server wants to know the user by: a login in the address, headers."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup import preload
from pytest_ollama_warmup.cli.main import main
from pytest_ollama_warmup.emulator import Emulator
from pytest_ollama_warmup.errors import BadSetting
from tests.conftest import LLAMA, ONE_TEST, Suite
from tests.front import front

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

    from tests.front import Answer

THERE = replace(LLAMA, present=True)
N2 = ["-n2"]
LIST = "--ollama-preload=llama3.2:1b"
LOGIN = "ann:s3cr%40t/"
SHOWN_NOWHERE = ("s3cr", base64.b64encode(b"ann:s3cr@t/").decode(), "gate-k3y")
BASIC = ("Authorization", f"Basic {base64.b64encode(b'ann:s3cr@t/').decode()}")
KEY = ("X-Gate", "gate-k3y")


@contextmanager
def gateway(port: int, *wanted: tuple[str, str]) -> Iterator[Gateway]:
    """Pass on to *port* what has the headers that are *wanted*; else answer as nginx does."""
    refused: list[str] = []

    def answer(request: BaseHTTPRequestHandler, path: str) -> Answer | None:
        if all(request.headers.get_all(name) == [value] for name, value in wanted):
            return None
        refused.append(path)
        # Some echo what they refuse.
        echoed = " ".join(value for _, value in request.headers.items())
        return 401, "text/plain", f"no access: {echoed}".encode()

    with front(port, answer) as address:
        yield Gateway(address, refused)


class Gateway:
    """Where a gateway listens, and the paths that it refused."""

    def __init__(self, address: str, refused: list[str]) -> None:
        self.address, self.refused = address, refused
        self.url = f"http://{address}"
        self.with_login = f"http://{LOGIN.replace('/', '%2F')}@{address}"


@pytest.fixture
def locked(suite: Suite) -> Iterator[Gateway]:
    """A gateway to the emulator that wants a user and a password."""
    suite.ollama.add(THERE)
    with gateway(suite.ollama.port, BASIC) as found:
        yield found


# Fails, so that all that tracebacks show is shown.
USES = """
    import asyncio, os, urllib.request
    import pytest
    from pytest_ollama_warmup.session.state import directory_of

    def test_clients(ollama_client, ollama_async_client, ollama_model):
        assert ollama_client.generate(ollama_model, "Hello").response
        assert asyncio.run(ollama_async_client.generate(ollama_model, "Hello")).response

    def test_records(ollama_model, pytestconfig):
        files = [one for one in directory_of(pytestconfig).path.rglob("*") if one.is_file()]
        assert files
        assert not [one for one in files if bytes.fromhex("73336372") in one.read_bytes()]

    def test_fails(ollama_host, ollama_openai_base_url, ollama_client, ollama_models, pytestconfig):
        settings = pytestconfig.stash
        from pytest_ollama_warmup.session.state import check_of, warmers_of
        check, warmer = check_of(pytestconfig), warmers_of(pytestconfig).own
        settings, host, client = warmer.settings, warmer.host, warmer.client()
        ollama_models["no, such"]
"""


def nothing_is_shown(run: object) -> None:
    text = "".join(getattr(run, name) for name in ("out", "err"))
    assert [] == [secret for secret in SHOWN_NOWHERE if secret in text]


@pytest.mark.parametrize(("given", "workers"), [("environment", []), ("option", N2), ("file", [])])
def test_a_login_in_the_address_is_sent_and_never_shown(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, locked: Gateway, workers: list[str], given: str
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    suite.write({"test_uses.py": USES})
    args = [LIST, "-v", "--showlocals", "-rA", "--junitxml=junit.xml", *workers]
    if given == "environment":
        monkeypatch.setenv("OLLAMA_HOST", locked.with_login)
    elif given == "option":
        args.append(f"--ollama-host={locked.with_login}")
    else:
        suite.write({"pytest.ini": f"[pytest]\nollama_host = {locked.with_login}\n"})
    run = suite.run(*args)
    assert {"passed": 2, "failed": 1} == run.counts
    assert "ollama_host = 'http://***@127.0.0.1" in run.out
    assert ([], 1) == (locked.refused, len(suite.ollama.loads))
    assert f"{locked.url} (" in run.ours[0]
    assert "Warning" not in run.out
    nothing_is_shown(run)
    kept = [one for one in suite.pytester.path.rglob("*") if one.is_file()]
    kept = [one for one in kept if one.name != "pytest.ini"]
    assert [] == [one for one in kept if b"s3cr" in one.read_bytes()]


@pytest.mark.parametrize(("before", "workers"), [("unset", []), ("without", N2), ("with", [])])
def test_the_tests_own_clients_find_it_in_the_variable_and_in_the_fixtures(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, locked: Gateway, workers: list[str], before: str
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    # The / and the @ in a spelling of the user's own.
    own = locked.with_login.replace("%40", "@")
    expected = own if before == "with" else locked.with_login
    if before != "unset":
        monkeypatch.setenv("OLLAMA_HOST", own if before == "with" else locked.address)
    suite.write(
        {
            "conftest.py": f"import os\nassert os.environ['OLLAMA_HOST'] == {expected!r}\n",
            "test_it.py": f"""
                import json, os, httpx
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_host, ollama_openai_base_url):
                    assert {locked.with_login!r} == ollama_host
                    assert {locked.with_login + "/v1"!r} == ollama_openai_base_url
                    for one in (ollama_host, os.environ["OLLAMA_HOST"]):
                        assert 200 == httpx.get(one + "/api/tags").status_code
            """,
        }
    )
    assert {"passed": 1} == suite.run(f"--ollama-host={locked.with_login}", *workers).counts


def test_a_wrong_one_is_named_and_not_shown(suite: Suite, locked: Gateway) -> None:
    suite.write(ONE_TEST)
    run = suite.run(f"--ollama-host=http://ann:s3cretive@{locked.address}")
    assert {"skipped": 1} == run.counts
    assert f"{locked.url} (from --ollama-host) refuses access (HTTP 401" in run.out
    assert "The server does not accept the user and password in the address." in run.out
    assert "Basic ***" in run.out
    nothing_is_shown(run)
    run = suite.run(f"--ollama-host={locked.url}")
    assert "write USER:PASSWORD@ before the host if it wants a password" in run.out


def test_the_login_goes_before_the_key_and_a_header_before_both(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, locked: Gateway
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "k")
    suite.write({"test_uses.py": USES})
    run = suite.run(LIST, f"--ollama-host={locked.with_login}", "-k", "not fails")
    assert ({"passed": 2}, []) == (run.counts, locked.refused)
    with gateway(suite.ollama.port, ("Authorization", "Token t")) as other:
        header = "--ollama-header=authorization:Token t"
        address = f"--ollama-host={other.with_login}"
        run = suite.run(LIST, address, header, "-k", "not fails")
    assert ({"passed": 2}, []) == (run.counts, other.refused)


HEADERS = {
    "option": (["--ollama-header=X-Gate: gate-k3y"], ""),
    "repeated": (["--ollama-header", "x-gate:gate-k3y", "--ollama-header=X-Other: $$1"], ""),
    "variable": (["--ollama-header=X-Gate: $GATE_KEY"], ""),
    "file": ([], "ollama_header = X-Gate: gate-${GATE_PART}\n    X-Other: two words\n"),
    "overridden": (["--ollama-header=X-Gate: gate-k3y"], "ollama_header = X-Gate: other\n"),
    "cleared": (["--ollama-header=X-Gate:a", "--ollama-header=", "--ollama-header=X-Gate:$GATE_KEY"], ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "listed", "workers"),
    [
        *((one, [LIST], []) for one in HEADERS),
        ("variable", [LIST, "--ollama-background"], []),
        ("variable", [], N2),
        ("file", [LIST], N2),
    ],
)
def test_a_header_is_sent_with_each_request_and_its_value_never_shown(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    listed: list[str],
    workers: list[str],
) -> None:
    suite.ollama.add(THERE)
    monkeypatch.setenv("GATE_KEY", "gate-k3y")
    monkeypatch.setenv("GATE_PART", "k3y")
    args, ini = HEADERS[given]
    marked = USES.replace("def test", '@pytest.mark.requires_model("llama3.2:1b")\n    def test')
    suite.write({"test_uses.py": marked if not listed else USES, "pytest.ini": f"[pytest]\n{ini}"})
    with gateway(suite.ollama.port, KEY) as locked:
        monkeypatch.setenv("OLLAMA_HOST", locked.address)
        run = suite.run(*listed, *args, "--showlocals", "-rA", *workers)
    assert 1 == run.counts["failed"]
    assert ([], 1) == (locked.refused, len(suite.ollama.loads))
    assert "Warning" not in run.out
    nothing_is_shown(run)


@pytest.mark.parametrize("workers", [[], N2])
def test_suites_without_marks_are_watched_with_it_too(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write({"test_it.py": "def test_it(): pass\n"})
    with gateway(suite.ollama.port, KEY, BASIC) as locked:
        address = f"--ollama-host={locked.with_login}"
        run = suite.run(LIST, address, "--ollama-header=X-Gate: gate-k3y", *workers)
    assert ({"passed": 1}, []) == (run.counts, locked.refused)


@pytest.mark.parametrize(
    ("args", "ini", "words"),
    [
        (["--ollama-header=gate-k3y"], "", "'***' is not a valid --ollama-header. Expected NAME: VALUE"),
        (["--ollama-header=X Gate: gate-k3y"], "", "'***' is not a valid --ollama-header. Expected NAME: VALUE"),
        (["--ollama-header=X-Gate: gate-k3yé"], "", "'X-Gate: ***' is not a valid --ollama-header. Expected plain ASCII"),
        (["--ollama-header=X-Gate: gate-k3y\r\nX-B: 1"], "", "'X-Gate: ***' is not a valid --ollama-header. Expected plain ASCII"),
        (["--ollama-header=X-Gate:"], "", "'X-Gate: ***' is not a valid --ollama-header. Expected plain ASCII"),
        (["--ollama-header=X-Gate: gate-k3y$"], "", "A $ that names no variable is written $$."),
        (["--ollama-header=content-length: 3"], "", "Each request sets this header itself."),
        ([], "ollama_header = gate-k3y", "'***' is not a valid ollama_header in pytest.ini. Expected NAME: VALUE"),
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused_without_its_value(
    suite: Suite, args: list[str], ini: str, words: str
) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n", "pytest.ini": f"[pytest]\n{ini}\n"})
    run = suite.run(*args)
    assert 4 == run.ret
    assert words in run.err
    assert "Traceback" not in run.err
    nothing_is_shown(run)


def test_a_header_of_another_type_is_refused_without_its_value(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": "def test_it(): pass\n",
            "pyproject.toml": '[tool.pytest.ini_options]\nollama_header = ["X-Gate: gate-k3y", 5]\n',
        }
    )
    run = suite.run()
    assert 4 == run.ret
    assert (
        "'***' is not a valid ollama_header in pyproject.toml. Expected a list of strings"
        in run.err
    )
    nothing_is_shown(run)


@pytest.mark.parametrize(("value", "workers"), [(None, N2), ("  ", [])])
def test_a_variable_that_is_not_set_matters_only_where_a_model_is_wanted(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str], value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("GATE_KEY", value)
    suite.write({"test_it.py": "def test_it(): pass\n"})
    suite.write({"pytest.ini": "[pytest]\nollama_header = X-Gate: gate-$GATE_KEY\n"})
    assert {"passed": 1} == suite.run(*workers).counts
    suite.write(ONE_TEST)
    run = suite.run(*workers)
    assert (4, []) == (run.ret, suite.ollama.requests)
    assert (
        "the header X-Gate (from ollama_header in pytest.ini) needs the environment variable "
        "GATE_KEY, which is not set. Set it, or leave the header out."
    ) in run.err


# Plain http to another machine: through a proxy, as there is no other machine.
RISK = "sent to http://ollama:11434 unencrypted, so that others in the network can read it."


@pytest.mark.parametrize(
    ("login", "args", "what", "workers"),
    [
        ("ann:s3cr%40t%2F@", [], "the password in the address", N2),
        ("", ["--ollama-header=X-Gate: gate-k3y"], "X-Gate", []),
        ("ann:s3cr%40t%2F@", ["--ollama-header=X-Gate: gate-k3y"], "the password in the address, X-Gate", []),
    ],
)  # fmt: skip
def test_plain_http_elsewhere_gets_them_with_one_warning(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    login: str,
    args: list[str],
    what: str,
) -> None:
    suite.ollama.add(THERE)
    two = ONE_TEST["test_chat.py"] + "\n        test_two = test_tone\n"
    suite.write({"test_chat.py": two})
    wanted = [*([BASIC] if login else []), *([KEY] if args else [])]
    with gateway(suite.ollama.port, *wanted) as locked:
        monkeypatch.setenv("HTTP_PROXY", locked.url)
        address = f"--ollama-host=http://{login}ollama:11434"
        run = suite.run(address, *args, *workers)
        assert ({"passed": 2}, []) == (
            {name: n for name, n in run.counts.items() if name == "passed"},
            locked.refused,
        )
        assert 1 == run.out.count(f"{what}: {RISK}")
        assert ", 1 warning in" in run.out
        nothing_is_shown(run)
        run = suite.run(address, *args, *workers, "-W", "error")
        assert {"passed": 2} == run.counts
        assert (
            f"{what}: {RISK} Use an https:// address if the server has one. [sent-unencrypted]"
            in run.ours
        )


@pytest.mark.parametrize("workers", [[], N2])
def test_so_does_a_server_of_the_suites_own_fixture(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, locked: Gateway, workers: list[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", locked.url)
    test = """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("n", range(4))
        def test_it(ollama_host, n):
            pass
    """
    conftest = own_fixture("http://ann:s3cr%40t%2F@ollama:11434")
    suite.write({"conftest.py": conftest, "test_it.py": test})
    run = suite.run(*workers)
    assert [] == locked.refused
    assert 1 == run.out.count(f"the password in the address: {RISK}")
    assert "4 passed, 1 warning in" in run.out


def test_the_key_of_the_environment_is_withheld_where_a_header_is_sent(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody has given it for this server.
    monkeypatch.setenv("OLLAMA_API_KEY", "k3y")
    suite.ollama.answer_all_with(401, "application/json", b"{}")
    suite.write(ONE_TEST)
    with gateway(suite.ollama.port, KEY) as locked:
        monkeypatch.setenv("HTTP_PROXY", locked.url)
        header = "--ollama-header=X-Gate: gate-k3y"
        run = suite.run("--ollama-host=http://ollama:11434", header)
        assert [] == locked.refused
    assert "OLLAMA_API_KEY was not sent: it goes to https and loopback only." in run.out


def test_a_run_that_needs_no_model_is_warned_of_nothing(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    monkeypatch.setenv("OLLAMA_HOST", "http://ann:s3cret@ollama:11434")
    run = suite.run("--ollama-header=X-Gate: gate-k3y")
    assert ({"passed": 1}, []) == (run.counts, run.ours)
    assert "Warning" not in run.out


# Servers that are known later, or several


def test_each_worker_has_the_login_of_its_own_server(suite: Suite) -> None:
    suite.ollama.add(THERE)
    other = ("Authorization", f"Basic {base64.b64encode(b'bob:b0bs').decode()}")
    suite.write(
        {
            "test_it.py": """
                import os
                import pytest

                @pytest.mark.parametrize("n", range(8))
                def test_it(ollama_client, ollama_model, n):
                    assert ollama_client.generate(ollama_model, "Hello").response
            """
        }
    )
    with gateway(suite.ollama.port, BASIC) as one, gateway(suite.ollama.port, other) as two:
        hosts = f"--ollama-host={one.with_login},http://bob:b0bs@{two.address}"
        for args in (["-n2"], []):
            run = suite.run(LIST, hosts, *args)
            assert {"passed": 8} == run.counts
            assert ([], []) == (one.refused, two.refused)
            nothing_is_shown(run)
            assert "b0bs" not in run.out + run.err


def own_fixture(url: str) -> str:
    return f"""
        import pytest

        @pytest.fixture(scope="session")
        def ollama_host():
            return {url!r}
    """


@pytest.mark.parametrize(
    ("how", "workers"), [("hook", []), ("hook", N2), ("fixture", N2), ("conftest", N2)]
)
def test_a_login_in_an_address_that_the_suite_names_is_sent(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, locked: Gateway, workers: list[str], how: str
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    conftests = {
        "hook": f"""
            import pytest

            @pytest.hookimpl(optionalhook=True)
            def pytest_ollama_host(config):
                return {locked.with_login!r}
        """,
        "fixture": own_fixture(locked.with_login),
        "conftest": f"import os\nos.environ['OLLAMA_HOST'] = {locked.with_login!r}\n",
    }
    test = """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("n", range(4))
        def test_it(ollama_client, n):
            assert ollama_client.generate("llama3.2:1b", "Hello").response
    """
    suite.write({"conftest.py": conftests[how], "test_it.py": test})
    run = suite.run(*workers)
    assert ({"passed": 4}, [], 1) == (run.counts, locked.refused, len(suite.ollama.loads))
    nothing_is_shown(run)


def test_what_the_run_has_loaded_is_unloaded_with_the_login(suite: Suite, locked: Gateway) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_host):
                    pass
            """
        }
    )
    run = suite.run(LIST, f"--ollama-host={locked.with_login}", "--ollama-unload")
    assert ({"passed": 1}, []) == (run.counts, locked.refused)
    assert 0 == suite.ollama.calls("generate")[-1].body["keep_alive"]
    # On a server of the suite's own fixture too.
    suite.write({"conftest.py": own_fixture(locked.with_login)})
    with Emulator([THERE]) as other:
        run = suite.run(LIST, f"--ollama-host={other.url}", "--ollama-unload")
        assert 0 == other.calls("generate")[-1].body["keep_alive"]
    assert ({"passed": 1}, []) == (run.counts, locked.refused)
    assert 0 == suite.ollama.calls("generate")[-1].body["keep_alive"]


def test_a_warning_of_another_address_shows_no_login(suite: Suite, locked: Gateway) -> None:
    moves = """
        import pytest

        @pytest.fixture(autouse=True)
        def environment(monkeypatch):
            monkeypatch.setenv("OLLAMA_HOST", "ann:s3cret@gpu:1")
    """
    suite.write({**ONE_TEST, "conftest.py": moves})
    run = suite.run(f"--ollama-host={locked.with_login}", "-W", "always")
    assert f"OLLAMA_HOST is '***@gpu:1' in this test, and models are prepared at {locked.url}" in (
        run.out
    )
    nothing_is_shown(run)


# A bad address


@pytest.mark.parametrize(
    ("given", "address", "workers"),
    [
        ("environment", "http://ann:s3/cr@h", []),
        ("option", "h:99999", N2),
        ("option", "ann:s3,cr@h", []),
        ("file", "ftp://ann:s3cr@h", []),
    ],
)
def test_a_bad_address_never_ends_a_run_that_needs_no_model(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    given: str,
    address: str,
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    args = [*workers]
    if given == "environment":
        monkeypatch.setenv("OLLAMA_HOST", address)
    elif given == "option":
        args.append(f"--ollama-host={address}")
    suite.write({"test_it.py": "def test_it(): pass\n"})
    suite.write({"pytest.ini": f"[pytest]\nollama_host = {address if given == 'file' else ''}\n"})
    assert {"passed": 1} == suite.run(*args).counts
    # Nor does a test that asks for the address get another one in its place.
    suite.write({"test_it.py": "def test_it(): pass\ndef test_host(ollama_host): pass\n"})
    run = suite.run(*args)
    assert {"passed": 1, "error": 1} == run.counts
    assert "is not an address of an Ollama server" in run.out
    suite.write(ONE_TEST)
    run = suite.run(*args)
    assert 4 == run.ret
    assert "is not an address of an Ollama server" in run.err
    assert "s3" not in run.out + run.err
    assert "Traceback" not in run.out + run.err


# Without pytest


def test_the_commands_send_both_and_show_neither(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.ollama.add(THERE)
    monkeypatch.setenv("GATE_KEY", "gate-k3y")
    with gateway(suite.ollama.port, BASIC, KEY) as locked:
        access = ["--host", locked.with_login, "--header", "X-Gate: $GATE_KEY"]
        assert 0 == main(["preload", LLAMA.name, *access])
        assert 0 == main(["status", LLAMA.name, "--json", *access])
        assert 0 == main(["cache-key", LLAMA.name, "--digests", *access])
        assert 0 == main(["unload", LLAMA.name, *access])
        monkeypatch.setenv("OLLAMA_HOST", locked.with_login)
        assert 0 == main(["pull", LLAMA.name, "--ollama-header=X-Gate: gate-k3y"])
        record = preload(LLAMA.name, header="X-Gate: $GATE_KEY")
        assert [] == record.failed
        assert [] == locked.refused
        assert 1 == main(["status", LLAMA.name])
    shown = capsys.readouterr()
    assert "The server does not accept the user and password in the address." in shown.err
    assert [] == [one for one in SHOWN_NOWHERE if one in shown.out + shown.err + repr(record)]


def test_the_commands_name_the_risk_once(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.ollama.add(THERE)
    with gateway(suite.ollama.port, BASIC) as locked:
        monkeypatch.setenv("HTTP_PROXY", locked.url)
        monkeypatch.setenv("OLLAMA_HOST", "http://ann:s3cr%40t%2F@ollama:11434")
        for command in ("preload", "status"):
            assert 0 == main([command, LLAMA.name])
            shown = capsys.readouterr()
            assert 1 == (shown.out + shown.err).count(RISK)
            assert f"ollama: warning: the password in the address: {RISK}" in shown.err
        with pytest.warns(UserWarning, match=RISK):
            assert [] == preload(LLAMA.name).failed


def test_bad_headers_are_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(["status", "--header", "gate-k3y"])
    assert "'***' is not a valid --header. Expected NAME: VALUE" in capsys.readouterr().err
    assert 2 == main(["status", "--header", "X-Gate: $GATE_KEY"])
    assert "needs the environment variable GATE_KEY" in capsys.readouterr().err
    with pytest.raises(BadSetting, match="header="):
        preload("a", header=["gate-k3y"])
