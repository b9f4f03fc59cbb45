"""The load that is asked for before conftests are imported: when it leaves, and when it must not."""

from __future__ import annotations

import re
import signal
import socket
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from pytest_ollama_warmup.emulator import Emulator
from pytest_ollama_warmup.ollama.client import Client
from pytest_ollama_warmup.ollama.host import parse_host
from tests.conftest import LLAMA, ONE_TEST, Result, Suite, is_early
from tests.test_faults import until

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
LIST = "--ollama-preload=llama3.2:1b"
# What went by while the model loaded; a fast start of pytest is not worth a word of its own.
MEANWHILE = re.compile(r"ready after .* s, .*while (pytest started and collected|collecting)")
THERE = replace(LLAMA, present=True)
INI = '[tool.pytest.ini_options]\nollama_preload = ["llama3.2:1b"]\n'
# Goes on when the model is loaded: nobody else asks for it meanwhile. Workers find it loaded.
WAITS_FOR_THE_LOAD = """
    import json, os, time, urllib.request

    url = os.environ.get("OLLAMA_HOST") + "/api/ps"
    begin = time.monotonic()
    while not json.load(urllib.request.urlopen(url))["models"]:
        assert time.monotonic() - begin < 30, "nobody has asked for the load"
        time.sleep(0.01)
"""


@pytest.fixture
def there(suite: Suite) -> Suite:
    """A suite with one test, and its model on the server's disk."""
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    return suite


def early(ollama: Emulator) -> list[str]:
    """Return what was asked for early since the last call; the server is cold after it."""
    found = sent_early(ollama)
    ollama.forget()
    ollama.unload(LLAMA.name)
    return found


def sent_early(ollama: Emulator) -> list[str]:
    return [f"{one.method} {one.path}" for one in ollama.requests if is_early(one)]


def loaded_models(ollama: Emulator) -> list[str]:
    with closing(Client(parse_host(ollama.url, "test"))) as client:
        return [one.name for one in client.loaded_models()]


ASKED = ["GET /api/ps", "POST /api/generate"]


@WORKERS
@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_model_is_loaded_while_conftests_are_imported(
    there: Suite, monkeypatch: pytest.MonkeyPatch, workers: list[str], by: str
) -> None:
    there.write({"conftest.py": WAITS_FOR_THE_LOAD})
    if by == "environment":
        monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", LLAMA.name)
    run = there.run(*([LIST] if by == "option" else []), *workers)
    assert {"passed": 1} == run.counts
    assert 1 == len(there.ollama.loads)
    posts = [one for one in there.ollama.requests if is_early(one) and one.method == "POST"]
    # Without a keep-alive: it could shorten a longer one.
    assert [{"model": LLAMA.name, "prompt": "", "stream": False}] == [one.body for one in posts]
    assert ASKED == early(there.ollama)


def test_the_summary_says_what_went_by_meanwhile(there: Suite) -> None:
    there.ollama.add(replace(THERE, load_s=0.5))
    there.write({"conftest.py": WAITS_FOR_THE_LOAD})
    row, after = there.run(LIST, "-v").table
    assert "✓ llama3.2:1b   loaded in 0.5" in row
    assert MEANWHILE.fullmatch(after)
    there.ollama.unload(LLAMA.name)
    there.write({"conftest.py": "import time; time.sleep(0.5)\n"})
    there.ollama.add(replace(THERE, load_s=3.0))
    _, after = there.run(LIST).table
    assert MEANWHILE.fullmatch(after)


def test_a_load_by_a_mark_alone_says_nothing_of_it(there: Suite) -> None:
    assert "while pytest" not in there.run().out
    assert [] == early(there.ollama)


def test_the_load_is_that_of_the_list_and_of_the_last_run(there: Suite) -> None:
    there.run("--ollama-preload=llama3.2:1b,num_ctx=2048,num_batch=64")
    options = [one.body["options"] for one in there.ollama.requests if one.body.get("options")]
    assert {"num_ctx": 2048, "num_batch": 64} == options[0]
    assert 1 == len(there.ollama.loads)


OWN_CONTEXT = """
    import json, os, urllib.request
    import pytest

    @pytest.mark.requires_model("llama3.2:1b")
    def test_it(ollama_host):
        body = {"model": "llama3.2:1b", "prompt": "Hi", "options": {"num_ctx": 8192}}
        request = urllib.request.Request(ollama_host + "/api/generate", json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=60).read()
"""


def test_it_is_asked_for_with_the_context_that_tests_used(there: Suite, client: Client) -> None:
    there.write({"test_chat.py": OWN_CONTEXT})
    there.run(LIST)
    early(there.ollama)
    run = there.run(LIST, "-v")
    assert "num_ctx 8192, learned" in run.table[0]
    assert [8192] == [one.options["num_ctx"] for one in there.ollama.loads]
    assert ASKED == early(there.ollama)
    # What is in memory with options that nobody here knows of stays as it is.
    client.load(LLAMA.name, "generate", prompt="", options={"num_ctx": 1024}, limit_s=5.0)
    there.run("--ollama-preload=llama3.2:1b", "--cache-clear")
    assert ["GET /api/ps"] == early(there.ollama)


def test_of_several_models_the_first_is_asked_for(there: Suite) -> None:
    there.ollama.add(replace(THERE, name="b:1", digest="b" * 64))
    run = there.run("--ollama-preload=b:1 llama3.2:1b")
    posts = [one.model for one in there.ollama.requests if is_early(one) and one.method == "POST"]
    assert (["b:1"], 2) == (posts, len(there.ollama.loads))
    assert {"passed": 1} == run.counts


def test_an_embedding_model_is_loaded_as_the_last_run_did_it(there: Suite) -> None:
    embed = replace(THERE, name="embed:1b", capabilities=("embedding",), digest="e" * 64)
    there.ollama.add(embed)
    there.write({"test_chat.py": ONE_TEST["test_chat.py"].replace("llama3.2", "embed")})
    run = there.run("--ollama-preload=embed:1b")
    assert ({"passed": 1}, 1) == (run.counts, len(there.ollama.loads))
    # The server refuses it, and nothing comes of it.
    assert ASKED == early(there.ollama)
    there.ollama.unload("embed:1b")
    run = there.run("--ollama-preload=embed:1b")
    assert ({"passed": 1}, 1) == (run.counts, len(there.ollama.loads))
    assert ["GET /api/ps", "POST /api/embed"] == early(there.ollama)


def test_what_it_has_loaded_is_unloaded_at_the_end(there: Suite) -> None:
    there.write({"conftest.py": WAITS_FOR_THE_LOAD})
    there.run(LIST, "--ollama-unload")
    assert (ASKED, []) == (sent_early(there.ollama), loaded_models(there.ollama))


QUIET: dict[str, tuple[list[str], dict[str, str]]] = {
    "collect-only": ([LIST, "--collect-only"], {}),
    "fixtures": ([LIST, "--fixtures"], {}),
    "fixtures-per-test": ([LIST, "--fixtures-per-test"], {}),
    "help": ([LIST, "--help"], {}),
    "version": ([LIST, "--version"], {}),
    "markers": ([LIST, "--markers"], {}),
    "setup-plan": ([LIST, "--setup-plan"], {}),
    "setup-only": ([LIST, "--setup-only"], {}),
    "cache-show": ([LIST, "--cache-show"], {}),
    "off": ([LIST, "--ollama-off"], {}),
    "grouped": ([LIST, "--ollama-group-by-model"], {}),
    "overlap": ([LIST, "--ollama-background"], {}),
    "not warmed": ([LIST, "--ollama-warm=off"], {}),
    "pulled in any case": ([LIST, "--ollama-pull=always"], {}),
    "cloud": (["--ollama-preload=gpt-oss:20b-cloud", "--ollama-on-unavailable=skip"], {}),
    "pinned": (["--ollama-preload=llama3.2:1b@sha256:" + "a" * 64, "--ollama-pull=never"], {}),
    "alias": (["--ollama-alias=chat=llama3.2:1b"], {}),
    "no such file": ([LIST, "llama3.2"], {}),
    "modules": ([LIST, "--pyargs", "test_chat"], {}),
    "in a file, for the first time": ([], {"pyproject.toml": INI}),
    "hook": ([LIST], {"conftest.py": "def pytest_ollama_host(config): return None\n"}),
    "hook for requests": (
        [LIST],
        {"conftest.py": "def pytest_ollama_warmup_request(config, spec): return None\n"},
    ),
    "set in a conftest": ([LIST], {"conftest.py": "import os\nos.environ['OLLAMA_HOST']\n"}),
    "set in a directory": ([LIST, "."], {"tests/conftest.py": "# load_dotenv()\n"}),
    "set above": ([LIST, "sub/test_it.py"], {"conftest.py": "# OLLAMA_HOST\n"}),
    "plugins of a conftest": ([LIST], {"conftest.py": "pytest_plugins = []\n"}),
    "gevent": ([LIST], {"conftest.py": "# from gevent import monkey\n"}),
    "named plugin": ([LIST, "-p", "sets_it"], {"sets_it.py": "# OLLAMA_HOST\n"}),
    "dotenv": ([LIST], {".env": "OLLAMA_HOST=\n"}),
    "pytest-env": ([LIST], {"pytest.ini": "[pytest]\n# env = OLLAMA_HOST=\n"}),
    "pytest-env in pyproject": ([LIST], {"pyproject.toml": "# OLLAMA_HOST\n"}),
}


@pytest.mark.parametrize("name", QUIET)
def test_nothing_is_asked_for_early(there: Suite, name: str) -> None:
    args, files = QUIET[name]
    there.write({"sub/test_it.py": "def test_it(): pass\n", **files})
    there.run("-p", "no:randomly", *args)
    assert [] == early(there.ollama)


CERTAIN: dict[str, tuple[list[str], dict[str, str]]] = {
    "plain": ([], {}),
    "only read": ([], {"conftest.py": "import os\nHOST = os.environ.get('OLLAMA_HOST', 'x')\n"}),
    "elsewhere": (["test_chat.py"], {"other/conftest.py": "# OLLAMA_HOST\n"}),
    "option": (["--ollama-host={url}"], {"conftest.py": "# OLLAMA_HOST, dotenv\n"}),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_where_the_server_is_certain_it_is_asked(there: Suite, name: str) -> None:
    args, files = CERTAIN[name]
    there.write(files)
    run = there.run(LIST, *(one.format(url=there.ollama.url) for one in args))
    assert ({"passed": 1}, ASKED) == (run.counts, early(there.ollama))


def test_several_servers_are_not_asked(there: Suite) -> None:
    with Emulator([THERE]) as other:
        there.run(LIST, f"--ollama-host={there.ollama.url},{other.url}", "-n2")
        assert ([], []) == (early(there.ollama), early(other))


def test_a_proxy_that_the_client_would_use_is_not_passed_by(
    there: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"http://{socket.gethostname()}:{there.ollama.port}"
    monkeypatch.setenv("http_proxy", there.ollama.url)
    there.run(LIST, f"--ollama-host={name}", "--ollama-wait=0")
    assert [] == early(there.ollama)


def test_a_run_inside_a_test_leaves_it_to_the_outer_one(there: Suite) -> None:
    there.write(
        {
            "test_chat.py": """
                import subprocess, sys

                def test_it(ollama_model, tmp_path):
                    (tmp_path / "test_in.py").write_text("def test_in(): pass")
                    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "LIST"]
                    subprocess.run(command, cwd=tmp_path, check=True)
            """.replace("LIST", LIST)
        }
    )
    assert {"passed": 1} == there.run(LIST).counts
    assert ASKED == early(there.ollama)


def test_what_a_file_lists_is_asked_for_where_the_same_run_needed_it_before(there: Suite) -> None:
    there.write({"pyproject.toml": INI, "test_plain.py": "def test_plain(): pass\n"})
    there.run()
    assert [] == early(there.ollama)
    there.run()
    assert ASKED == early(there.ollama)
    # Another selection may need nothing.
    there.run("test_plain.py")
    assert [] == early(there.ollama)
    there.run()
    assert ASKED == early(there.ollama)
    there.write({"test_chat.py": "def test_other(): pass\n"})
    there.run()
    assert ASKED == early(there.ollama)
    there.run()
    assert [] == early(there.ollama)


def test_without_a_cache_nothing_is_known_of_the_last_run(there: Suite) -> None:
    there.write({"pyproject.toml": INI})
    for args in ([], ["-pno:cacheprovider"], ["--cache-clear"]):
        there.run(*args)
        assert [] == early(there.ollama)


# What follows must print and return what it would without the request.

BROKEN_CONFTEST = "raise RuntimeError('broken')\n"


def shown(run: Result) -> tuple[int, str, str]:
    """Return what a run says, without its times and the line that a short wait does without."""
    out = re.sub(r"^ready after .+\n", "", run.out, flags=re.MULTILINE)
    times = re.compile(r"\d+(\.\d+)? ?m?s\b")
    return run.ret, times.sub("T", out), times.sub("T", run.err)


def both_ways(suite: Suite, *args: str) -> Result:
    """Run with and without the early request; return the first, if both say the same."""
    with_it = suite.run(*args)
    suite.ollama.forget()
    suite.ollama.unload(LLAMA.name)
    without = suite.run(*args, "--override-ini=env_files=stop.env")
    assert not any(is_early(one) for one in suite.ollama.requests)
    assert shown(without) == shown(with_it)
    return with_it


@pytest.fixture
def stoppable(there: Suite) -> Suite:
    """A suite in which an option of pytest keeps the request back, and changes nothing else."""
    there.write(
        {
            "stop.env": "OLLAMA_HOST\n",
            "files.py": """
                def pytest_addoption(parser):
                    parser.addini("env_files", "", type="linelist")
            """,
            "pytest.ini": "[pytest]\naddopts = -p files -p no:randomly -p no:cacheprovider\n",
        }
    )
    return there


@WORKERS
def test_a_conftest_that_fails(stoppable: Suite, workers: list[str]) -> None:
    stoppable.write({"conftest.py": BROKEN_CONFTEST})
    run = both_ways(stoppable, LIST, *workers)
    assert 4 == run.ret
    assert "ollama" not in run.out


def test_a_conftest_that_fails_has_asked_for_one_load_at_most(there: Suite) -> None:
    there.write({"conftest.py": WAITS_FOR_THE_LOAD + "    raise RuntimeError\n"})
    run = there.run(LIST)
    assert (4, 1) == (run.ret, len(there.ollama.loads))
    assert ASKED == sent_early(there.ollama)


@pytest.mark.parametrize("args", [["--no-such-option"], ["--ollama-wait=x"], ["-n", "x"]])
def test_a_usage_error(stoppable: Suite, args: list[str]) -> None:
    assert 4 == both_ways(stoppable, LIST, *args).ret


def test_a_model_that_is_missing(stoppable: Suite) -> None:
    assert 2 == both_ways(stoppable, "--ollama-preload=missing:1", "--ollama-pull=never").ret


def test_a_load_that_fails(stoppable: Suite) -> None:
    stoppable.ollama.add(replace(THERE, load_error="model requires more system memory"))
    run = both_ways(stoppable, LIST)
    assert 2 == run.ret
    assert "model requires more system memory" in run.out


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<title>Sign in"), (404, b"no"), (503, b"busy"), (401, b"{}")]
)
def test_another_service(stoppable: Suite, status: int, body: bytes) -> None:
    stoppable.ollama.answer_all_with(status, "text/html", body)
    run = both_ways(stoppable, LIST, "--ollama-wait=0.3")
    assert 2 == run.ret
    assert not stoppable.ollama.loads


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_server_at_all(stoppable: Suite, scheme: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    host = f"--ollama-host={scheme}://127.0.0.1:{port}"
    assert 2 == both_ways(stoppable, LIST, host, "--ollama-wait=0").ret


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_speaks_another_protocol(stoppable: Suite, scheme: str) -> None:
    # It accepts, and never says a word: of TLS neither.
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        host = f"--ollama-host={scheme}://127.0.0.1:{silent.getsockname()[1]}"
        assert 2 == both_ways(stoppable, LIST, host, "--ollama-wait=0").ret


def test_a_server_that_does_not_accept(stoppable: Suite) -> None:
    with closing(socket.socket()) as listening, closing(socket.socket()) as first:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        # What comes after it gets no answer to its first packet.
        first.connect(listening.getsockname())
        port = listening.getsockname()[1]
        host = f"--ollama-host=127.0.0.1:{port}"
        assert 2 == both_ways(stoppable, LIST, host, "--ollama-wait=0").ret


def test_ctrl_c_while_conftests_are_imported(there: Suite) -> None:
    there.ollama.add(replace(THERE, load_s=60.0))
    there.write({"conftest.py": "import time\ntime.sleep(60)\n"})
    process = there.start(LIST)
    try:
        until(lambda: ASKED == sent_early(there.ollama))
        until(lambda: there.ollama.loading)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert "KeyboardInterrupt" in output
    assert "ollama:" not in output
    # The server ends the load with the connection.
    until(lambda: there.ollama.loading is None)


IN_PROCESS = """
    import gc, sys, threading, warnings
    import pytest

    warnings.simplefilter("error")
    unraisable = []
    sys.unraisablehook = unraisable.append
    code = pytest.main(["-p", "ollama_warmup", "-p", "no:cacheprovider", *sys.argv[1:]])
    gc.collect()
    left = [one.name for one in threading.enumerate() if "early" in one.name]
    print("LEFT", int(code), left, unraisable)
"""


@pytest.mark.parametrize("conftest", ["", BROKEN_CONFTEST], ids=["good", "broken"])
@pytest.mark.parametrize("load_s", [0.0, 60.0], ids=["quick", "slow"])
def test_no_thread_outlives_the_run(there: Suite, load_s: float, conftest: str) -> None:
    there.ollama.add(replace(THERE, load_s=load_s))
    there.write({"conftest.py": conftest, "main.py": IN_PROCESS})
    # A slow load is cut by a time limit of the client's.
    args = [LIST, "-o", "ollama_load_timeout=1", "-W", "ignore"]
    done = there.pytester.run(sys.executable, "main.py", *args, timeout=60)
    code = 4 if conftest else 2 if load_s else 0
    assert f"LEFT {code} [] []" in done.outlines
