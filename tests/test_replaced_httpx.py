"""Suites that put something else in the place of httpx: what cannot be asked is said, no more."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING

import httpx
import pytest

from pytest_ollama_warmup.ollama.host import parse_host
from pytest_ollama_warmup.ollama.replaced_httpx import as_error, is_for_us, replaced
from tests.conftest import LLAMA

if TYPE_CHECKING:
    from tests.conftest import Result, Suite

HEAD = "import sys, types, httpx, pytest, socket\nfrom unittest.mock import MagicMock\n"
# What is put in place, and how the message names it.
KINDS = {
    "send raises": (
        """
        def no_network(*args, **kwargs):
            raise AssertionError("no network in unit tests")
        httpx.Client.send = no_network
        """,
        "httpx.Client.send",
    ),
    "send fails the test": (
        """
        def no_network(*args, **kwargs):
            pytest.fail("no network in unit tests")
        httpx.Client.send = no_network
        """,
        "httpx.Client.send",
    ),
    "send answers": (
        """
        def answer(self, request, **kwargs):
            return httpx.Response(200, json={"ok": True}, request=request)
        httpx.Client.send = answer
        """,
        "httpx.Client.send",
    ),
    "send has no arguments": ("httpx.Client.send = lambda: None", "httpx.Client.send"),
    "build_request": (
        """
        def no_request(self, *args, **kwargs):
            raise ValueError("no requests")
        httpx.Client.build_request = no_request
        """,
        "httpx.Client.build_request",
    ),
    "class": (
        """
        class Fake:
            def get(self, url): return None
        httpx.Client = Fake
        """,
        "httpx.Client",
    ),
    "class that fails the test": (
        "httpx.Client = lambda *args, **kwargs: pytest.fail('no network')",
        "httpx.Client",
    ),
    "mock": ("httpx.Client = MagicMock()", "httpx.Client"),
    "None": ("httpx.Client = None", "httpx.Client"),
    "transport": (
        """
        def no_network(self, request):
            raise RuntimeError("no network in unit tests")
        httpx.HTTPTransport.handle_request = no_network
        """,
        "httpx.HTTPTransport.handle_request",
    ),
    "transport answers": (
        """
        def answer(self, request):
            return httpx.Response(418)
        httpx.HTTPTransport.handle_request = answer
        """,
        "httpx.HTTPTransport.handle_request",
    ),
    "close": (
        """
        def no_close(self):
            raise RuntimeError("not to be closed")
        httpx.Client.close = no_close
        """,
        "",
    ),
    "Request": ("httpx.Request = None", ""),
    "Timeout": ("httpx.Timeout = None", "httpx.Timeout"),
    "errors": (
        "httpx.RequestError = httpx.ReadTimeout = 'no class'",
        "httpx.RequestError",
    ),
    "module": ("sys.modules['httpx'] = types.ModuleType('httpx')", "httpx"),
    "module mocked": ("sys.modules['httpx'] = MagicMock()", "httpx"),
    "module gone": ("sys.modules['httpx'] = None", "httpx"),
    "sockets": (
        """
        def no_socket(*args, **kwargs):
            raise RuntimeError("no sockets in unit tests")
        socket.create_connection = no_socket
        """,
        "",
    ),
}
KIND = pytest.mark.parametrize("kind", KINDS)
FEW = pytest.mark.parametrize("kind", ["send raises", "class that fails the test", "module mocked"])
PROCESSES = pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
CALM = ["--ollama-wait=0.2", "--ollama-on-unavailable=skip", "-rs"]
TESTS = """
import pytest

@pytest.mark.requires_model("llama3.2:1b")
@pytest.mark.parametrize("n", range(3))
def test_model(n): pass

def test_plain(): pass
"""


def write(suite: Suite, kind: str, where: str = "test_it.py") -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    code = HEAD + textwrap.dedent(KINDS[kind][0])
    files = {"conftest.py": "", "test_it.py": TESTS}
    if where == "fixture":
        head = "import pytest\n\n@pytest.fixture(scope='session', autouse=True)\ndef mocked():\n"
        files["conftest.py"] = head + textwrap.indent(code, "    ")
    else:
        files[where] = code + "\n" + files[where]
    suite.write(files)


def sound(run: Result) -> dict[str, int]:
    """Return the counts of a run that ended as runs do."""
    assert run.ret in (0, 1)
    for sign in ("INTERNALERROR", "Traceback", "please report it", "crashed", "error at"):
        assert sign not in run.out + run.err
    return {key: number for key, number in run.counts.items() if key != "warnings"}


def fresh_run(suite: Suite, *args: str) -> Result:
    """Run the suite where the plugin is not imported before the suite's own modules."""
    return suite.run(*args, fresh=True)


@KIND
def test_what_a_module_replaces_on_import_is_named(suite: Suite, kind: str) -> None:
    write(suite, kind)
    run = fresh_run(suite, *CALM)
    counts = sound(run)
    if name := KINDS[kind][1]:
        assert {"passed": 1, "skipped": 3} == counts
        assert f"has replaced {name} (now " in run.out
    elif kind == "sockets":
        assert {"passed": 1, "skipped": 3} == counts
        assert "cannot be asked: RuntimeError: no sockets in unit tests. [cannot-ask]\n" in run.out
    else:
        assert {"passed": 4} == counts


@pytest.mark.parametrize(
    "kind",
    [
        "send raises",
        "send fails the test",
        "class",
        "class that fails the test",
        "mock",
        "transport",
        "module gone",
    ],
)
def test_workers_look_no_more_and_run_what_is_ready(suite: Suite, kind: str) -> None:
    write(suite, kind)
    run = fresh_run(suite, *CALM, "-n2")
    assert {"passed": 4} == sound(run)
    assert "OllamaWarmupWarning: cannot see whether models are still warm" in run.out
    assert 1 == len(suite.ollama.loads)


@FEW
@PROCESSES
def test_a_conftest_that_replaces_it_is_named(suite: Suite, kind: str, args: list[str]) -> None:
    write(suite, kind, "conftest.py")
    run = fresh_run(suite, *CALM, *args)
    assert {"passed": 1, "skipped": 3} == sound(run)
    assert f"has replaced {KINDS[kind][1]} (now " in run.out


@FEW
@PROCESSES
def test_a_session_fixture_that_replaces_it_costs_the_looks(
    suite: Suite, kind: str, args: list[str]
) -> None:
    write(suite, kind, "fixture")
    run = fresh_run(suite, *CALM, *args)
    assert {"passed": 4} == sound(run)
    assert 1 == len(suite.ollama.loads)


@FEW
@pytest.mark.parametrize("where", ["conftest.py", "test_it.py"])
def test_listed_models_do_not_change_that(suite: Suite, kind: str, where: str) -> None:
    write(suite, kind, where)
    run = fresh_run(suite, *CALM, "--ollama-preload=llama3.2:1b", "--ollama-unload")
    assert sound(run) in ({"passed": 1, "skipped": 3}, {"passed": 4})
    if where == "conftest.py":
        assert f"has replaced {KINDS[kind][1]} (now " in run.out


def test_another_process_prepares_models_all_the_same(suite: Suite) -> None:
    write(suite, "send raises")
    run = fresh_run(suite, *CALM, "--ollama-background")
    assert {"passed": 4} == sound(run)
    assert 1 == len(suite.ollama.loads)


# What counts as replaced


def test_httpx_as_it_is_counts_as_its_own() -> None:
    assert "" == replaced()


def test_what_wraps_a_part_counts_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = httpx.Client.send

    @wraps(plain)
    def traced(*args: object, **kwargs: object) -> object:
        return None

    monkeypatch.setattr(httpx.Client, "send", traced)
    assert "" == replaced()


def test_without_httpx_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "httpx")
    assert "" == replaced()


class _Odd:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)


def test_a_stand_in_may_raise_whatever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "Client", _Odd())
    assert "httpx.Client" in replaced()


@pytest.mark.parametrize(
    ("exc", "ours"),
    [
        (ValueError(), (True, True)),
        (KeyboardInterrupt(), (False, False)),
        (SystemExit(), (False, False)),
        (pytest.exit.Exception("over"), (False, False)),
        # Also how pytest-timeout ends a test.
        (pytest.fail.Exception("slow"), (False, True)),
    ],
)
def test_what_ends_a_run_or_a_test_still_does(
    monkeypatch: pytest.MonkeyPatch, exc: BaseException, ours: tuple[bool, bool]
) -> None:
    before = is_for_us(exc)
    monkeypatch.setattr(httpx.Client, "send", lambda *args: None)
    assert ours == (before, is_for_us(exc))


def test_the_message_says_what_was_replaced_and_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx.Client, "send", write)
    problem = as_error(ValueError("no"), parse_host("h", "OLLAMA_HOST"))
    assert str(problem).startswith(
        "the server at http://h:11434 (from OLLAMA_HOST) cannot be asked: the suite, or a plugin, "
        f"has replaced httpx.Client.send (now {__name__}.write): ValueError: no. [cannot-ask]\nReplace it"
    )
    assert "cannot be asked: httpx.Client.send is replaced" == problem.brief
