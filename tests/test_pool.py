"""Several servers: workers of pytest-xdist are spread over them."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import httpx
import pytest

from pytest_ollama_warmup.emulator import Emulator
from tests.conftest import LLAMA, ONE_TEST, Suite, UserSuite
from tests.test_faults import end
from tests.test_learning import OWN_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THERE = replace(LLAMA, present=True)
LIST = "--ollama-preload=llama3.2:1b"
STEPS = pytest.mark.parametrize("args", [[], [LIST]], ids=["marked", "listed"])

# Each test waits until all have begun: each worker runs one.
SPREAD = """
    import os, pathlib, time, pytest

    HERE = pathlib.Path(__file__).parent
    AT_IMPORT = os.environ.get("OLLAMA_HOST")

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(COUNT))
    def test_where(ollama_host, ollama_openai_base_url, worker_id, n):
        assert ollama_host == "http://" + os.environ["OLLAMA_HOST"]
        assert f"{ollama_host}/v1" == ollama_openai_base_url
        (HERE / f"at-{worker_id}").write_text(f"{ollama_host} http://{AT_IMPORT}")
        deadline = time.monotonic() + 30
        while len(list(HERE.glob("at-*"))) < COUNT:
            assert time.monotonic() < deadline
            time.sleep(0.02)
"""


UNMARKED = """
    import os, pathlib, time, pytest

    HERE = pathlib.Path(__file__).parent
    AT_IMPORT = os.environ["OLLAMA_HOST"]

    @pytest.mark.parametrize("n", range(3))
    def test_where(worker_id, n):
        (HERE / f"at-{worker_id}").write_text(f"http://{os.environ['OLLAMA_HOST']} http://{AT_IMPORT}")
        deadline = time.monotonic() + 30
        while len(list(HERE.glob("at-*"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
"""

# The worker gw1 crashes, and all others wait for the one in its place.
CRASHES = """
    import os, pathlib, time, pytest

    HERE = pathlib.Path(__file__).parent
    AT_IMPORT = os.environ["OLLAMA_HOST"]

    @pytest.mark.requires_model("llama3.2:1b")
    @pytest.mark.parametrize("n", range(12))
    def test_where(ollama_host, worker_id, n):
        (HERE / f"at-{worker_id}").write_text(f"{ollama_host} http://{AT_IMPORT}")
        if worker_id == "gw1":
            os._exit(1)
        deadline = time.monotonic() + 30
        while not (HERE / "at-gw3").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
"""


@pytest.fixture
def start() -> Iterator[Callable[[], Emulator]]:
    """Start a server that has the model."""
    with ExitStack() as servers:
        yield lambda: servers.enter_context(Emulator([THERE]))


@pytest.fixture
def three(start: Callable[[], Emulator]) -> list[Emulator]:
    """Three servers."""
    return [start() for _ in range(3)]


@pytest.fixture
def absent() -> Iterator[Emulator]:
    """A server that has to pull the model."""
    with Emulator([LLAMA]) as emulator:
        yield emulator


def spread(suite: Suite, workers: int) -> None:
    suite.write({"test_where.py": SPREAD.replace("COUNT", str(workers))})


class Server(Protocol):
    @property
    def url(self) -> str: ...


def hosts(*servers: Server) -> str:
    return f"--ollama-host={','.join(one.url for one in servers)}"


def used(suite: UserSuite) -> dict[str, str]:
    """Which worker used which server; at import it was the same."""
    found = {}
    for path in suite.pytester.path.glob("at-*"):
        used, at_import = path.read_text().split()
        found[path.name.removeprefix("at-")] = used
        assert used == at_import
    return found


@STEPS
@pytest.mark.parametrize("workers", [3, 4])
def test_worker_i_uses_host_i_mod_n_also_when_its_modules_are_imported(
    suite: Suite, three: list[Emulator], args: list[str], workers: int
) -> None:
    spread(suite, workers)
    run = suite.run(f"-n{workers}", hosts(*three), *args)
    assert {"passed": workers} == run.counts
    assert {f"gw{n}": three[n % 3].url for n in range(workers)} == used(suite)
    assert [1, 1, 1] == [len(one.loads) for one in three]
    assert [] == suite.ollama.requests


def test_plugins_that_are_imported_before_this_one_see_it_too(
    suite: Suite, three: list[Emulator]
) -> None:
    early = """
        import os, pathlib
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        pathlib.Path(f"early-{worker}").write_text(os.environ["OLLAMA_HOST"])
    """
    suite.write({"early.py": early, "test_it.py": "def test_it(): pass\n"})
    assert {"passed": 1} == suite.run("-p", "early", "-n3", hosts(*three)).counts
    for number, one in enumerate(three):
        assert one.url == "http://" + (suite.pytester.path / f"early-gw{number}").read_text()


def test_the_worker_whose_host_the_variable_names_keeps_it_as_it_is(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, three: list[Emulator]
) -> None:
    here = three[1].url.replace("127.0.0.1", "LOCALHOST") + "/"
    monkeypatch.setenv("OLLAMA_HOST", here)
    expected = [one.url.removeprefix("http://") for one in three]
    expected[1] = here
    suite.write(
        {
            "conftest.py": """
                import os

                AT_IMPORT = os.environ["OLLAMA_HOST"]
            """,
            "test_it.py": f"""
                import os, conftest, pytest

                @pytest.mark.parametrize("n", range(3))
                def test_it(n, worker_id):
                    found = os.environ["OLLAMA_HOST"]
                    assert {expected!r}[int(worker_id[2:])] == found == conftest.AT_IMPORT
            """,
        }
    )
    assert {"passed": 3} == suite.run("-n3", hosts(*three)).counts


def test_the_worker_whose_host_is_the_usual_one_sees_no_other(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    suite.write(
        {
            "test_it.py": """
                import os, pytest

                EXPECTED = ["gpu:11434", "127.0.0.1:11434"]

                @pytest.mark.parametrize("n", range(2))
                def test_it(n, worker_id):
                    assert EXPECTED[int(worker_id[2:])] == os.environ["OLLAMA_HOST"]
            """
        }
    )
    assert {"passed": 2} == suite.run("-n2", "--ollama-host=gpu,127.0.0.1").counts


def test_the_run_says_which_hosts_and_what_each_of_them_cost(
    suite: Suite, three: list[Emulator]
) -> None:
    spread(suite, 3)
    run = suite.run("-n3", hosts(*three), LIST, "-v")
    listed = ", ".join(one.url for one in three)
    assert run.ours[0].startswith(f"{listed} (--ollama-host), preload: llama3.2:1b")
    # Those that took equally long are named together.
    said = " ".join(one for one in run.ours if " loaded in " in one)
    ready = re.findall(r"llama3.2:1b at (\S+?),? ", said)
    assert sorted(one.url for one in three) == sorted(ready)
    assert [f"at {one.url}" for one in three] == [
        row.split(", ")[1].split("   ")[0] for row in run.table[:3]
    ]


def test_a_file_can_list_them_and_each_is_pulled_to(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, ollama: Emulator, absent: Emulator
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    two = [ollama, absent]
    spread(suite, 2)
    suite.write({"pytest.ini": f"[pytest]\nollama_host = {two[0].url}, {two[1].url}\n"})
    run = suite.run("-n2", "--ollama-pull=missing", "-v")
    assert {"passed": 2} == run.counts
    assert [(1, 1), (1, 1)] == [(len(one.pulls), len(one.loads)) for one in two]
    assert "(ollama_host in pytest.ini)" in run.ours[0]


def test_the_workers_of_a_file_move_and_say_who_gave_the_hosts(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, three: list[Emulator]
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    three[1].stop()
    listed = ",".join(one.url for one in three)
    suite.write(
        {
            "pytest.ini": f"[pytest]\nollama_host = {listed}\n",
            "test_it.py": f"""
                import os, pytest
                from pytest_ollama_warmup.session.state import settings_of

                URLS = {[three[0].url, three[2].url, three[2].url]}

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(6))
                def test_it(n, ollama_host, worker_id, pytestconfig):
                    assert URLS[int(worker_id[2:])] == ollama_host
                    assert ollama_host == "http://" + os.environ["OLLAMA_HOST"]
                    host = settings_of(pytestconfig).host
                    assert (ollama_host, "ollama_host in pytest.ini") == (host.url, host.source)
            """,
        }
    )
    run = suite.run("-n3", "--ollama-wait=0")
    assert {"passed": 6} == run.counts
    assert [1, 0, 1] == [len(one.loads) for one in three]


@STEPS
def test_a_worker_that_takes_the_place_of_a_crashed_one_keeps_its_host(
    suite: Suite, three: list[Emulator], args: list[str]
) -> None:
    suite.write({"test_where.py": CRASHES})
    run = suite.run("-n3", hosts(*three), *args)
    assert {"failed": 1, "passed": 11} == run.counts
    found = used(suite)
    assert three[1].url == found["gw1"] == found["gw3"]
    assert [1, 1, 1] == [len(one.loads) for one in three]


def test_a_run_that_needs_no_model_asks_no_host(suite: Suite, three: list[Emulator]) -> None:
    suite.write(
        {
            "test_it.py": """
                import os, pytest

                @pytest.mark.parametrize("n", range(4))
                def test_it(n, ollama_host, worker_id):
                    assert URLS[int(worker_id[2:])] == ollama_host
                    assert ollama_host == "http://" + os.environ["OLLAMA_HOST"]
            """.replace("URLS", repr([one.url for one in three]))
        }
    )
    run = suite.run("-n3", hosts(*three))
    assert ({"passed": 4}, []) == (run.counts, run.ours)
    assert [[], [], []] == [one.requests for one in three]


def test_looking_asks_no_host(suite: Suite, three: list[Emulator]) -> None:
    spread(suite, 3)
    for look in ("--collect-only", "--setup-plan", "--fixtures"):
        suite.run("-n3", hosts(*three), LIST, look)
    assert [[], [], []] == [one.requests for one in three]


def test_off_leaves_the_environment_alone(suite: Suite, three: list[Emulator]) -> None:
    suite.write(
        {
            "test_it.py": """
                import os

                def test_it():
                    assert URL == os.environ["OLLAMA_HOST"]
                    assert not [one for one in os.environ if one.startswith("PYTEST_OLLAMA")]
            """.replace("URL", repr(suite.ollama.url))
        }
    )
    assert {"passed": 1} == suite.run("-n2", hosts(*three), "--ollama-off").counts


def test_a_run_inside_of_a_test_has_hosts_of_its_own(suite: Suite, three: list[Emulator]) -> None:
    suite.write(
        {
            "test_outer.py": f"""
                import subprocess, sys

                def test_outer():
                    command = [sys.executable, "-m", "pytest", "-p", "ollama_warmup", "inner.py"]
                    hosts = "{hosts(three[2], three[1])}"
                    subprocess.run([*command, hosts], check=True)
            """,
            "inner.py": f"def test(ollama_host): assert '{three[2].url}' == ollama_host\n",
        }
    )
    assert {"passed": 1} == suite.run("-n2", hosts(*three)).counts


# One is down


@STEPS
@pytest.mark.usefixtures("ollama_in_path")
@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_the_workers_of_a_host_that_is_down_move_to_those_that_answer(
    suite: Suite, three: list[Emulator], args: list[str], policy: str
) -> None:
    three[1].stop()
    spread(suite, 5)
    if not args:
        # They know only after collection, when their modules have been imported.
        text = SPREAD.replace("http://{AT_IMPORT}", "{ollama_host}").replace("COUNT", "5")
        suite.write({"test_where.py": text})
    run = suite.run(
        "-n5", hosts(*three), "--ollama-wait=0.3", f"--ollama-on-unavailable={policy}", *args
    )
    assert {"passed": 5} == run.counts
    here, _, there = (one.url for one in three)
    assert {"gw0": here, "gw1": there, "gw2": there, "gw3": here, "gw4": here} == used(suite)
    (said,) = (line for line in run.ours if line.startswith("no Ollama at"))
    assert said.startswith(
        f"no Ollama at {three[1].url} (from --ollama-host): connection refused for 0."
    )
    assert f"\ngw1 uses {there}, gw4 uses {here}.\n→ Start it with" in said
    rows = [row for row in run.table if row[0] in "✓✗"]
    assert 3 == len(rows)
    assert f"at {three[1].url}: no Ollama" in rows[2]
    assert [1, 0, 1] == [len(one.loads) for one in three]


@STEPS
def test_one_that_is_down_ends_the_run_where_that_is_asked(
    suite: Suite, three: list[Emulator], args: list[str]
) -> None:
    three[1].stop()
    spread(suite, 3)
    run = suite.run("-n3", hosts(*three), "--ollama-wait=0", "--ollama-on-unavailable=exit", *args)
    assert 2 == run.ret
    out = run.err if args else run.out
    assert (
        f"no Ollama at {three[1].url} (from --ollama-host): connection refused. [server-unreachable]\n"
        in out
    )
    assert "--ollama-on-unavailable=skip goes on without it.\n" in out
    assert "Exit: ollama: no Ollama: connection refused !" in run.out
    assert {} == used(suite)
    assert [0, 0, 0] == [len(one.loads) for one in three]


def test_one_that_is_down_ends_a_run_whose_command_line_lists_models(
    suite: Suite, three: list[Emulator]
) -> None:
    three[2].stop()
    spread(suite, 3)
    run = suite.run("-n3", hosts(*three), "--ollama-wait=0", LIST)
    assert 2 == run.ret
    assert f"no Ollama at {three[2].url}" in run.err


@STEPS
@pytest.mark.parametrize(
    ("policy", "counts"), [("skip", {"skipped": 3}), ("fail", {"error": 3}), ("exit", None)]
)
def test_none_that_answers_is_like_the_only_one_that_does_not(
    suite: Suite,
    three: list[Emulator],
    args: list[str],
    policy: str,
    counts: dict[str, int] | None,
) -> None:
    for one in three:
        one.stop()
    spread(suite, 3)
    run = suite.run(
        "-n3", hosts(*three), "--ollama-wait=0", f"--ollama-on-unavailable={policy}", "-rs", *args
    )
    each = "; ".join(f"{one.url}: connection refused" for one in three)
    assert (
        f"no Ollama at any of 3 hosts (from --ollama-host): {each}; gave up after"
        in run.out + run.err
    )
    if counts is None:
        assert 2 == run.ret
    else:
        assert counts == run.counts
        (said,) = (line for line in run.ours if line.startswith("no Ollama at"))
        assert "wanted by test_where.py::test_where[0] and 2 more: 3 tests " in said
        assert 3 == len([row for row in run.table if "no Ollama" in row])


def test_hosts_are_waited_for_side_by_side(suite: Suite, three: list[Emulator]) -> None:
    for one in three:
        one.stop()
    spread(suite, 3)
    run = suite.run("-n3", hosts(*three), "--ollama-wait=3", "--ollama-on-unavailable=skip", LIST)
    assert re.search(r"; gave up after 3(\.\d)? s\.", run.out)
    waiting = {line for line in run.ours if line.startswith("waiting for")}
    assert {f"waiting for {one.url} (connection refused), up to 3 s" for one in three} == waiting


def test_a_model_that_one_host_lacks_skips_the_tests_there(
    suite: Suite, start: Callable[[], Emulator], absent: Emulator
) -> None:
    two = [start(), absent]
    spread(suite, 2)
    suite.write({"test_where.py": SPREAD.replace("COUNT", "2").replace("< 2", "< 1")})
    run = suite.run("-n2", hosts(*two), "-rs")
    assert {"passed": 1, "skipped": 1} == run.counts
    assert (
        f"so it is at {two[1].url}, and not elsewhere: tests that need it are skipped there"
    ) in run.out


@STEPS
def test_a_model_that_one_host_lacks_ends_the_run_where_that_is_asked(
    suite: Suite, start: Callable[[], Emulator], absent: Emulator, args: list[str]
) -> None:
    two = [start(), absent]
    spread(suite, 2)
    run = suite.run(
        "-n2", hosts(*two), "--ollama-on-unavailable=exit", "--ollama-pull=never", *args
    )
    assert 2 == run.ret
    who = " (from --ollama-preload)" if args else ""
    assert (
        f"ollama: {two[1].url}: llama3.2:1b{who} is not pulled, by --ollama-pull=never. [not-pulled]\n"
        in run.out + run.err
    )


# How many


@STEPS
@pytest.mark.parametrize("down", [0, 1, 2])
@pytest.mark.parametrize("how", [[], ["--ollama-background"]], ids=["", "overlap"])
def test_one_process_uses_the_first_that_answers(
    suite: Suite, three: list[Emulator], args: list[str], down: int, how: list[str]
) -> None:
    for one in three[:down]:
        one.stop()
    suite.write(
        {
            "test_it.py": f"""
                import os, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                def test_it(ollama_host):
                    assert "{three[down].url}" == ollama_host
                    assert ollama_host == "http://" + os.environ["OLLAMA_HOST"]
            """
        }
    )
    run = suite.run(hosts(*three), "--ollama-wait=0", *how, *args)
    assert {"passed": 1} == run.counts
    assert 1 == sum(len(one.loads) for one in three) == len(three[down].loads)
    assert f"one process uses one host, {three[down].url}: -n 3 spreads over all" in run.ours
    for one in three[:down]:
        assert any(line.startswith(f"no Ollama at {one.url} (") for line in run.ours)


@STEPS
def test_one_process_to_which_none_answers(
    suite: Suite, three: list[Emulator], args: list[str]
) -> None:
    for one in three:
        one.stop()
    suite.write(ONE_TEST)
    run = suite.run(hosts(*three), "--ollama-wait=0", "--ollama-on-unavailable=skip", "-rs", *args)
    assert {"skipped": 1} == run.counts
    assert 1 == run.out.count("no Ollama at any of 3 hosts (from --ollama-host): ")


def test_hosts_that_no_worker_uses_are_left_alone(suite: Suite, three: list[Emulator]) -> None:
    spread(suite, 2)
    run = suite.run("-n2", hosts(*three))
    assert {"passed": 2} == run.counts
    assert f"2 workers, and 3 hosts: {three[2].url} left out, -n 3 uses all" in run.ours
    assert [] == three[2].requests


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_one_host_by_two_names_is_one_host(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write(ONE_TEST)
    url = suite.ollama.url
    named = url.replace("127.0.0.1", "localhost").removeprefix("http://")
    run = suite.run(f"--ollama-host={url},{named}", "-v", *workers)
    assert {"passed": 1} == run.counts
    assert f"{url} is given more than once (from --ollama-host): it is one host." in run.ours
    row = run.table[0]
    assert " at " not in row
    assert 1 == len(suite.ollama.loads)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a,,b", "'a,,b' (from --ollama-host) is not an address of an Ollama server: a comma with no host before or after it."),
        ("a,", "'a,' (from --ollama-host) is not an address of an Ollama server: a comma with no host"),
        ("a,b:x,c", "'b:x' (from --ollama-host) is not an address of an Ollama server: port 'x'"),
        ("a,ftp://b", "'ftp://b' (from --ollama-host) is not an address of an Ollama server: scheme ftp"),
        (",me:secret@b", "',***@b' (from --ollama-host)"),
    ],
)  # fmt: skip
def test_a_bad_host_in_the_list_is_named(suite: Suite, value: str, message: str) -> None:
    suite.write(ONE_TEST)
    run = suite.run("-n2", f"--ollama-host={value}")
    assert 4 == run.ret
    assert message in run.err + run.out
    assert "secret" not in run.err + run.out


def test_the_variable_holds_one_host(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, three: list[Emulator]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ",".join(one.url for one in three))
    suite.write(ONE_TEST)
    run = suite.run("-n2")
    assert 4 == run.ret
    assert "more than one host; pytest's --ollama-host takes several" in run.out + run.err


# Together with the rest


@pytest.mark.parametrize("slots", [1, 2])
def test_slots_are_counted_for_each_host(
    suite: Suite, start: Callable[[], Emulator], slots: int
) -> None:
    two = [start(), start()]
    suite.write(
        {
            "test_it.py": """
                import pathlib, time, pytest

                HERE = pathlib.Path(__file__).parent

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(8))
                def test_it(n, ollama_host, worker_id):
                    port = ollama_host.rpartition(":")[2]
                    (HERE / f"in-{port}-{worker_id}").touch()
                    busy = len(list(HERE.glob(f"in-{port}-*"))), len(list(HERE.glob("in-*")))
                    (HERE / f"busy-{n}").write_text(f"{busy[0]} {busy[1]}")
                    time.sleep(0.3)
                    (HERE / f"in-{port}-{worker_id}").unlink()
            """
        }
    )
    run = suite.run("-n4", hosts(*two), f"--ollama-max-parallel={slots}")
    assert {"passed": 8} == run.counts
    busy = [path.read_text().split() for path in suite.pytester.path.glob("busy-*")]
    assert slots == max(int(there) for there, _ in busy)
    assert 2 * slots == max(int(everywhere) for _, everywhere in busy)


def test_groups_take_turns_and_each_host_loads_each_model_once(
    suite: Suite, start: Callable[[], Emulator]
) -> None:
    two = [start(), start()]
    for one in two:
        one.add(replace(THERE, name="other"))
    suite.write(
        {
            "test_it.py": """
                import time, pytest

                @pytest.mark.parametrize("n", range(6))
                @pytest.mark.parametrize("ollama_model", ["llama3.2:1b", "other"], indirect=True)
                def test_it(n, ollama_model): time.sleep(0.05)
            """
        }
    )
    run = suite.run("-n4", hosts(*two), "--ollama-group-by-model", "-v")
    assert {"passed": 12} == run.counts
    both = ["llama3.2:1b", "other:latest"]
    assert [both, both] == [[load.model for load in one.loads] for one in two]
    assert 4 == len([row for row in run.table if "loaded in" in row])


@STEPS
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_overlap_prepares_all_hosts_in_the_background(
    suite: Suite, three: list[Emulator], args: list[str], down: bool
) -> None:
    for one in three:
        one.add(replace(THERE, load_s=1.0))
    if down:
        three[1].stop()
    suite.write(
        {
            "test_where.py": f"""
                import os, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(3))
                def test_where(ollama_host, n):
                    assert ollama_host == "http://" + os.environ["OLLAMA_HOST"]
                    assert ollama_host in {[one.url for one in three if not down or one is not three[1]]}
            """,
            "test_plain.py": """
                import pytest

                @pytest.mark.parametrize("n", range(6))
                def test_plain(n): pass
            """,
        }
    )
    policy = ["--ollama-on-unavailable=skip", "--ollama-wait=0"]
    run = suite.run("-n3", hosts(*three), "--ollama-background", "-v", *policy, *args)
    assert {"passed": 9} == run.counts
    assert [1, int(not down), 1] == [len(one.loads) for one in three]
    lines = run.out.splitlines()
    first = min(i for i, line in enumerate(lines) if "test_plain" in line and "PASSED" in line)
    ready = min(i for i, line in enumerate(lines) if re.search("ollama: .*loaded in", line))
    # What is listed is begun with before the workers start, which takes as long.
    assert args or (
        first < ready and "waited for models (not counted in their durations)" in run.out
    )


def test_what_a_test_unloads_is_loaded_again_on_its_host(
    suite: Suite, start: Callable[[], Emulator]
) -> None:
    two = [start(), start()]
    suite.write(
        {
            "test_it.py": """
                import json, os, urllib.request
                import pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(6))
                def test_it(n, worker_id):
                    if worker_id == "gw1":
                        body = json.dumps({"model": "llama3.2:1b", "keep_alive": 0}).encode()
                        url = "http://" + os.environ["OLLAMA_HOST"] + "/api/generate"
                        urllib.request.urlopen(urllib.request.Request(url, body)).close()
            """
        }
    )
    run = suite.run("-n2", hosts(*two))
    assert {"passed": 6} == run.counts
    assert 1 == len(two[0].loads) < len(two[1].loads)
    assert f"llama3.2:1b at {two[1].url} was gone" in run.out
    assert f"llama3.2:1b at {two[0].url} was gone" not in run.out


def test_each_host_learns_what_its_tests_use(suite: Suite, start: Callable[[], Emulator]) -> None:
    two = [start(), start()]
    own = OWN_CONTEXT.replace("ollama_options, n", "ollama_options, n, ollama_host, worker_id")
    own = own.replace('os.environ["OLLAMA_HOST"]', "ollama_host")
    own = own.replace('{"num_ctx": 8192}', '{"num_ctx": 8192 if worker_id == "gw1" else 4096}')
    # What most of a worker's tests have seen: it takes more than two of them.
    suite.write({"test_it.py": own.replace("range(6)", "range(16)")})
    for one in two:
        one.add(replace(THERE, eval_s=0.05))
    found = []
    for _ in range(2):
        assert {"passed": 16} == suite.run("-n2", hosts(*two)).counts
        found.append([[load.options["num_ctx"] for load in one.loads] for one in two])
        for one in two:
            one.forget()
            one.unload("llama3.2:1b")
    # The second has learned, the first had nothing to learn.
    assert [[[4096], [4096, 8192]], [[4096], [8192]]] == found


def test_tests_that_do_not_say_what_they_need_find_it_warm_on_each_host(
    suite: Suite, three: list[Emulator]
) -> None:
    suite.write({"test_where.py": UNMARKED})
    run = suite.run("-n3", hosts(*three), LIST)
    assert {"passed": 3} == run.counts
    assert {f"gw{n}": three[n].url for n in range(3)} == used(suite)
    assert [1, 1, 1] == [len(one.loads) for one in three]


def test_ctrl_c_leaves_hosts_that_are_waited_for(suite: Suite, three: list[Emulator]) -> None:
    for one in three:
        one.stop()
    spread(suite, 3)
    process = suite.start("-n3", hosts(*three), "--ollama-wait=60", LIST)
    assert process.stdout is not None
    seen = ""
    while seen.count("waiting for") < 3:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, out = end(process)
    assert time.monotonic() - begin < 5
    listed = ", ".join(one.url for one in three)
    assert f"ollama: interrupted: waiting for {listed}." in out


def test_all_hosts_are_unloaded_at_the_end(suite: Suite, three: list[Emulator]) -> None:
    spread(suite, 3)
    assert {"passed": 3} == suite.run("-n3", hosts(*three), "--ollama-unload").counts
    assert [0, 0, 0] == [len(httpx.get(f"{one.url}/api/ps").json()["models"]) for one in three]


@pytest.mark.parametrize("args", [[], [LIST]], ids=["marked", "listed"])
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_hook_goes_before_hosts_of_a_file(
    suite: Suite,
    three: list[Emulator],
    monkeypatch: pytest.MonkeyPatch,
    workers: list[str],
    args: list[str],
) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    url = three[2].url
    suite.write(
        {
            "pytest.ini": f"[pytest]\nollama_host = {three[0].url},{three[1].url}\n",
            "conftest.py": f"def pytest_ollama_host(config): return {url!r}\n",
            "test_it.py": f"""
                import os, pytest

                @pytest.mark.requires_model("llama3.2:1b")
                @pytest.mark.parametrize("n", range(4))
                def test_it(n, ollama_host):
                    assert {url!r} == ollama_host == "http://" + os.environ["OLLAMA_HOST"]
            """,
        }
    )
    run = suite.run("-v", *workers, *args)
    assert {"passed": 4} == run.counts
    assert ([], [], 1) == (three[0].requests, three[1].requests, len(three[2].loads))
    assert f"{url} (pytest_ollama_host in conftest.py)" in run.out


def test_the_command_line_goes_before_the_hook(suite: Suite, three: list[Emulator]) -> None:
    spread(suite, 2)
    suite.write({"conftest.py": "def pytest_ollama_host(config): return 'nowhere.invalid'\n"})
    assert {"passed": 2} == suite.run("-n2", hosts(three[0], three[1])).counts
    assert {"gw0": three[0].url, "gw1": three[1].url} == used(suite)


def test_a_fixture_of_the_suite_gives_its_tests_another_server_or_one_of_these(
    suite: Suite, three: list[Emulator]
) -> None:
    here, other, elsewhere = three
    fixture = "import pytest\n@pytest.fixture(scope='session')\ndef ollama_host(): return {!r}\n"
    test = """
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        @pytest.mark.parametrize("n", range(4))
        def test_it(n, ollama_model, ollama_host):
            assert URL == ollama_host
    """
    suite.write(
        {
            "a/conftest.py": fixture.format(elsewhere.url),
            "a/test_a.py": test.replace("URL", repr(elsewhere.url)),
            "b/conftest.py": fixture.format(here.url),
            "b/test_b.py": test.replace("URL", repr(here.url)),
            "test_c.py": test.replace("URL ==", f"{elsewhere.url!r} !="),
        }
    )
    run = suite.run("-n2", hosts(here, other))
    assert {"passed": 12} == run.counts
    assert [1, 1, 1] == [len(one.loads) for one in three]


# Workers on other machines

# What a worker on another machine would find.
AWAY = """
    import pytest

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(config):
        if getattr(config, "workerinput", {}).get("workerid") in WORKERS:
            config.workerinput["ollama_warmup"]["directory"] = str(config.rootpath / "not" / "here")
"""


@STEPS
@pytest.mark.parametrize("away", [["gw0"], ["gw1"], ["gw0", "gw1"]], ids=["gw0", "gw1", "both"])
def test_a_worker_that_does_not_see_the_runs_directory_prepares_by_itself(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, args: list[str], away: list[str]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", suite.ollama.url.removeprefix("http://"))
    suite.ollama.add(THERE)
    spread(suite, 2)
    suite.write({"conftest.py": AWAY.replace("WORKERS", repr(away))})
    run = suite.run("--tx", "2*popen//chdir=.", "--dist=load", *args)
    assert {"passed": 2} == run.counts
    for worker in away:
        assert f"{worker} does not see the directory of this run" in run.out
    assert 1 == len(suite.ollama.loads)


@STEPS
def test_such_a_worker_skips_and_says_what_it_lacks(suite: Suite, args: list[str]) -> None:
    spread(suite, 2)
    suite.write({"conftest.py": AWAY.replace("WORKERS", "['gw0', 'gw1']")})
    run = suite.run(
        "-n2", "-rs", "-W", "error", "--ollama-on-unavailable=skip", "--ollama-pull=never", *args
    )
    assert {"skipped": 2} == run.counts
    who = " (from --ollama-preload)" if args else ""
    assert f"llama3.2:1b{who} is not pulled, by --ollama-pull=never. [not-pulled] Run" in run.out


def test_such_a_worker_brings_what_is_listed_also_for_tests_that_do_not_say_what_they_need(
    suite: Suite, start: Callable[[], Emulator]
) -> None:
    there = start()
    suite.ollama.add(THERE)
    conftest = (
        AWAY.replace("WORKERS", "['gw0', 'gw1']")
        + f"""
            from pytest_ollama_warmup.config.options import read_host
            from pytest_ollama_warmup.session import state
            settings = state.settings_of(config)
            host = read_host({there.url!r}, "there")
            config.stash[state.SETTINGS] = settings.on(host)
    """
    )
    suite.write({"conftest.py": conftest, "test_it.py": "def test_it(): pass\n"})
    assert {"passed": 1} == suite.run("-n2", LIST).counts
    assert 1 == len(there.loads)
