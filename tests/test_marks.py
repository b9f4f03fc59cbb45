"""The mark and the fixtures: which test needs which model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import is_early

if TYPE_CHECKING:
    from pytest_ollama_warmup.emulator import Emulator
    from tests.conftest import Suite


@pytest.fixture(autouse=True)
def _models(ollama: Emulator) -> None:
    for name in ("a:1", "b:1", "c:1", "d:1"):
        ollama.add(ScriptedModel(name, size=1000, present=True))
    ollama.add(ScriptedModel("embed:1", size=1000, present=True, capabilities=("embedding",)))


def loads(suite: Suite) -> list[str]:
    return sorted(name for name, _ in suite.ollama.loads)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("@pytest.mark.requires_model('a:1')\ndef test(): pass", ["a:1"]),
        ("@pytest.mark.requires_model('a:1', 'b:1')\ndef test(): pass", ["a:1", "b:1"]),
        ("@pytest.mark.requires_model('a:1 b:1')\ndef test(): pass", ["a:1", "b:1"]),
        ("@pytest.mark.requires_model('a:1')\nclass TestIt:\n    def test(self): pass", ["a:1"]),
        ("pytestmark = pytest.mark.requires_model('a:1')\ndef test(): pass", ["a:1"]),
        (
            "pytestmark = pytest.mark.requires_model('a:1')\n"
            "@pytest.mark.requires_model('b:1')\ndef test(ollama_model): assert ollama_model == 'b:1'",
            ["a:1", "b:1"],
        ),
        (
            "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.requires_model('a:1')), 2])\n"
            "def test(n): pass",
            ["a:1"],
        ),
        ("import unittest\n@pytest.mark.requires_model('a:1')\nclass T(unittest.TestCase):\n    def test(self): pass", ["a:1"]),
        ("@pytest.mark.requires_model('A:1')\ndef test(ollama_model): assert ollama_model == 'A:1'", ["a:1"]),
    ],
    ids=["function", "two", "text list", "class", "module", "module and function", "param", "unittest", "case"],
)  # fmt: skip
def test_the_mark_may_stand_wherever_marks_stand(
    suite: Suite, source: str, names: list[str]
) -> None:
    suite.write({"test_it.py": f"import pytest\n{source}\n"})
    run = suite.run("--strict-markers", "-rA")
    assert 0 == run.ret
    assert names == loads(suite)


@pytest.mark.parametrize("bare", ["requires_model", "requires_model()"])
def test_a_bare_mark_means_the_only_listed_model_with_its_options(suite: Suite, bare: str) -> None:
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = a:1,num_ctx=2048\n",
            "test_it.py": f"""
                import pytest

                @pytest.mark.{bare}
                def test_it(ollama_model, ollama_options):
                    assert ("a:1", {{"num_ctx": 2048}}) == (ollama_model, ollama_options)
            """,
        }
    )
    assert {"passed": 1} == suite.run("--strict-markers").counts
    assert [2048] == [options["num_ctx"] for _, options in suite.ollama.loads]


def test_a_bare_mark_with_several_listed_needs_the_server_only(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model
                def test_it(): pass
            """
        }
    )
    suite.ollama.stop()
    assert {"skipped": 1} == suite.run("--ollama-wait=0").counts
    suite.ollama.start()
    assert {"passed": 1} == suite.run().counts
    assert [] == loads(suite)


def test_a_mark_without_options_gets_the_listed_ones_and_one_with_options_its_own(
    suite: Suite,
) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("a:1")
                def test_listed(ollama_options):
                    assert {"num_ctx": 2048} == ollama_options

                @pytest.mark.requires_model("a:1", options={"num_ctx": 512, "num_gpu": 0})
                def test_own(ollama_options):
                    assert {"num_ctx": 512, "num_gpu": 0} == ollama_options

                @pytest.mark.requires_model("b:1,num_ctx=1024")
                def test_in_the_spec(ollama_options):
                    assert {"num_ctx": 1024} == ollama_options
            """
        }
    )
    assert {"passed": 3} == suite.run("--ollama-preload=a:1,num_ctx=2048").counts


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_the_mark_can_be_deselected_also_on_users_of_the_fixtures(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.mark.requires_model("a:1")
                def test_marked(): pass

                def test_by_fixture(ollama_model): pass

                @pytest.fixture
                def chat(ollama_models): return ollama_models["a:1"]

                def test_by_its_own_fixture(chat): pass

                def test_address(ollama_host): assert ollama_host
            """
        }
    )
    run = suite.run("-m", "not requires_model", *args)
    assert {"passed": 1} == {key: n for key, n in run.counts.items() if key == "passed"}
    assert [] == suite.ollama.requests


def test_fixtures_of_our_names_in_other_suites_are_left_alone(suite: Suite) -> None:
    suite.write(
        {
            "conftest.py": """
                import pytest

                @pytest.fixture
                def ollama_model(): return "their own"

                @pytest.fixture(scope="session")
                def ollama_models(): return ["their", "own"]
            """,
            "test_it.py": """
                def test_theirs(ollama_model, ollama_models):
                    assert ("their own", ["their", "own"]) == (ollama_model, ollama_models)
            """,
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert [] == suite.ollama.requests


@pytest.mark.parametrize("names", ["ollama_model", "ollama_models", "ollama_model,n"])
def test_arguments_of_our_names_are_a_tests_own(suite: Suite, names: str) -> None:
    values = "[('x', 1), ('y', 2)]" if "," in names else "['x', 'y']"
    suite.write(
        {
            "test_it.py": f"""
                import pytest

                @pytest.mark.parametrize("{names}", {values})
                def test_theirs({names}): assert {names.split(",")[0]} in "xy"
            """
        }
    )
    assert {"passed": 2} == suite.run().counts
    assert [] == suite.ollama.requests


@pytest.mark.parametrize("indirect", ["True", "['ollama_model']"])
def test_a_test_runs_on_each_model_of_an_indirect_parameter(suite: Suite, indirect: str) -> None:
    suite.write(
        {
            "test_it.py": f"""
                import pytest

                @pytest.mark.parametrize("ollama_model", ["a:1,num_ctx=512", "b:1"], indirect={indirect})
                def test_it(ollama_model, ollama_options):
                    assert (ollama_model, ollama_options) in [("a:1", {{"num_ctx": 512}}), ("b:1", {{}})]
            """
        }
    )
    assert {"passed": 2} == suite.run().counts
    assert ["a:1", "b:1"] == loads(suite)


@pytest.mark.parametrize("value", ["7", "'a b'", "'a,x=1'"])
def test_an_indirect_parameter_that_is_no_spec_is_refused(suite: Suite, value: str) -> None:
    suite.write(
        {
            "test_it.py": f"""
                import pytest

                @pytest.mark.parametrize("ollama_model", [{value}], indirect=True)
                def test_it(ollama_model): pass
            """
        }
    )
    run = suite.run()
    assert 4 == run.ret
    assert "parametrize: " in run.err
    assert "Traceback" not in run.out + run.err


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_models_looked_up_in_session_fixtures_are_made_ready_once(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.fixture(scope="session")
                def chat(ollama_models):
                    return ollama_models["a:1"]

                @pytest.mark.parametrize("n", range(8))
                def test_it(chat, n):
                    assert ("a:1", {}, ("completion",)) == (chat.name, chat.options, chat.capabilities)
                    assert chat.digest
            """
        }
    )
    run = suite.run("-v", *args)
    assert {"passed": 8} == run.counts
    assert ["a:1"] == loads(suite)
    assert run.table[0].startswith("✓ a:1   loaded in ")


def test_a_model_that_cannot_be_looked_up_skips_or_fails_the_test(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(ollama_models): ollama_models['nope']\n"})
    run = suite.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "SKIPPED [1] test_it.py:1: nope is not pulled" in run.out
    assert {"failed": 1} == suite.run("--ollama-on-unavailable=fail").counts


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["single", "n2"])
def test_a_model_that_cannot_be_looked_up_ends_the_run_where_that_is_asked(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                def test_it(ollama_models): ollama_models["nope"]

                @pytest.mark.parametrize("n", range(20))
                def test_later(n): pass
            """
        }
    )
    run = suite.run("--ollama-on-unavailable=exit", *args)
    assert 2 == run.ret
    assert "ollama: nope is not pulled" in run.out
    assert run.counts.get("passed", 0) < 20


def test_asking_whether_a_model_is_listed_asks_no_server(suite: Suite) -> None:
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = a:1\n",
            "test_it.py": """
                import pytest

                def test_it(ollama_models):
                    assert "A:1" in ollama_models
                    assert "nope" not in ollama_models
                    assert (1, ["a:1"]) == (len(ollama_models), list(ollama_models))
                    with pytest.raises(KeyError, match="unknown key"):
                        ollama_models["a:1,x=1"]
                    with pytest.raises(KeyError, match="expected one model"):
                        ollama_models["a b"]
            """,
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert ["a:1"] == loads(suite)
    assert {"a:1"} == {one.model for one in suite.ollama.requests if one.model}


def test_a_fixture_asked_for_at_run_time_without_a_model_fails_once(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(request): request.getfixturevalue('ollama_model')\n"})
    run = suite.run()
    assert {"failed": 1} == run.counts
    assert "During handling" not in run.out
    assert "test_it uses ollama_model without naming a model, and no model is listed" in run.out


def test_a_model_named_at_run_time_only_is_made_ready(suite: Suite) -> None:
    suite.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = a:1\n",
            "test_it.py": "def test_it(request): assert 'a:1' == request.getfixturevalue('ollama_model')\n",
        }
    )
    assert {"passed": 1} == suite.run().counts
    assert ["a:1"] == loads(suite)


def test_an_embedding_model_is_loaded_by_embedding(suite: Suite) -> None:
    suite.write({"test_it.py": "def test_it(): pass\n"})
    assert {"passed": 1} == suite.run("--ollama-preload=embed:1", "--ollama-warm=prompt").counts
    assert ["Hi"] == [one.body["input"] for one in suite.ollama.calls("embed") if one.body["input"]]
    assert [] == [one for one in suite.ollama.calls("generate") if not is_early(one)]


def test_doctests_and_plain_items_pass_through(suite: Suite) -> None:
    suite.write({"doc.py": 'def f():\n    """\n    >>> 1 + 1\n    2\n    """\n'})
    assert {"passed": 1} == suite.run("--doctest-modules", "doc.py").counts


def test_fixtures_explain_themselves(suite: Suite) -> None:
    out = suite.run("--fixtures").out
    for text in (
        "URL of the Ollama server of this run",
        "Base URL for OpenAI clients",
        "Name of the test's model",
        "Runner options of the test's model",
        'Models by alias or name: ``ollama_models["chat"].name``.',
        "The official client, an ``ollama.Client`` for ``ollama_host``.",
        "The official client for async tests",
    ):
        assert text in out


def test_the_mark_explains_itself(suite: Suite) -> None:
    assert (
        "@pytest.mark.requires_model(*specs, capabilities=(), options=None, on_unavailable=None): "
        in suite.run("--markers").out
    )


GENERATED = """
    def pytest_addoption(parser):
        parser.addoption("--models", default="a:1,b:1")

    def pytest_generate_tests(metafunc):
        if "ollama_model" in metafunc.fixturenames:
            names = metafunc.config.getoption("--models").split(",")
            metafunc.parametrize("ollama_model", names, indirect=True)
"""
GETS_ITS_OWN = """
    def test_it(ollama_model, request):
        assert ollama_model == request.node.callspec.params["ollama_model"]
"""
BOTH_WAYS = pytest.mark.parametrize("args", [[], ["--ollama-preload=a:1"]], ids=["", "listed"])


@BOTH_WAYS
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_parameter_that_a_hook_generates_is_the_model(
    suite: Suite, args: list[str], workers: list[str]
) -> None:
    suite.write({"conftest.py": GENERATED, "test_it.py": GETS_ITS_OWN})
    run = suite.run(*args, *workers)
    assert ({"passed": 2}, ["a:1", "b:1"]) == (run.counts, loads(suite))


@BOTH_WAYS
def test_so_is_that_of_a_plugin_and_of_a_wrapped_mark(suite: Suite, args: list[str]) -> None:
    suite.write(
        {
            "more.py": """
                import pytest

                def pytest_generate_tests(metafunc):
                    if "ollama_model" in metafunc.fixturenames:
                        models = [pytest.param("b:1", id="second"), pytest.param("c:1")]
                        metafunc.parametrize(["ollama_model"], models, indirect=["ollama_model"])
            """,
            "test_it.py": GETS_ITS_OWN,
        }
    )
    assert {"passed": 2} == suite.run("-p", "more", *args).counts


@BOTH_WAYS
def test_a_fixture_that_overrides_ours_hands_on_its_parameter(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "conftest.py": """
                import pytest

                @pytest.fixture(params=["b:1", "c:1"])
                def ollama_model(request, ollama_model):
                    return ollama_model
            """,
            "test_it.py": GETS_ITS_OWN,
        }
    )
    run = suite.run(*args)
    assert {"passed": 2} == run.counts
    assert {"b:1", "c:1"} <= set(loads(suite))


@BOTH_WAYS
def test_a_parameter_that_names_no_model_is_an_error_and_no_guess(
    suite: Suite, args: list[str]
) -> None:
    suite.write(
        {
            "conftest.py": """
                import pytest

                @pytest.fixture(params=[1, {"size": "small"}])
                def ollama_model(request, ollama_model):
                    return ollama_model
            """,
            "test_it.py": "def test_it(ollama_model): pass\n",
        }
    )
    run = suite.run(*args)
    assert {"error": 2} == run.counts
    assert "expected one model, got 1" in run.out


def test_an_overriding_fixture_that_asks_nothing_of_us_may_have_any_parameter(
    suite: Suite,
) -> None:
    suite.write(
        {
            "conftest.py": """
                import pytest

                @pytest.fixture(params=[1, {"size": "small"}])
                def ollama_model(request):
                    return request.param
            """,
            "test_it.py": "def test_it(ollama_model): assert ollama_model\n",
        }
    )
    assert {"passed": 2} == suite.run("--ollama-preload=a:1").counts


FORGOTTEN = """
    import pytest

    @pytest.mark.requires_model
    @pytest.mark.parametrize("ollama_model", ["a:1", "b:1"])
    def test_it(ollama_model): assert ollama_model
"""


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_a_forgotten_indirect_is_an_error_with_that_advice(
    suite: Suite, workers: list[str]
) -> None:
    suite.write({"test_it.py": FORGOTTEN})
    run = suite.run("--ollama-preload=a:1", *workers)
    assert 4 == run.ret
    assert "passes 'b:1' to the test, and nothing loads that model: add indirect=True" in run.err


@pytest.mark.parametrize(
    "source",
    [
        FORGOTTEN.replace("requires_model", "requires_model('a:1', 'b:1')"),
        # Nothing says that it is a matter of ours.
        FORGOTTEN.replace("@pytest.mark.requires_model\n    ", ""),
        FORGOTTEN.replace('["a:1", "b:1"]', "[1, 2]"),
    ],
    ids=["marked", "not ours", "no names"],
)
def test_a_plain_parameter_that_is_prepared_or_not_ours_is_none(suite: Suite, source: str) -> None:
    suite.write({"test_it.py": source})
    assert {"passed": 2} == suite.run("--ollama-preload=a:1").counts


def test_the_default_of_the_models_is_the_first_listed_one(suite: Suite) -> None:
    suite.write(
        {
            "test_it.py": """
                import pytest

                @pytest.fixture(scope="session")
                def client(ollama_models):
                    return ollama_models.default.name, ollama_models.default.options

                def test_it(client):
                    assert ("b:1", {"num_ctx": 512}) == client
            """
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=b:1,num_ctx=512 a:1").counts
    run = suite.run()
    assert {"error": 1} == run.counts
    assert "ollama_models.default is the first listed model, and none is listed" in run.out


def test_the_help_of_ollama_model_names_what_session_fixtures_use(suite: Suite) -> None:
    assert "ollama_models.default.name" in suite.run("--fixtures", "-v").out


@pytest.mark.parametrize(
    ("condition", "counts", "asked"),
    [
        ("'sys.platform != \"none\"'", {"skipped": 1}, False),
        ("'HERE == 1'", {"skipped": 1}, False),
        ("'HERE == 2'", {"passed": 1}, True),
        ("'config.getoption(\"verbose\") < 9'", {"skipped": 1}, False),
        ("'nonsense('", {"error": 1}, True),
    ],
)
def test_a_condition_in_a_text_is_read_as_pytest_reads_it(
    suite: Suite, condition: str, counts: dict[str, int], asked: bool
) -> None:
    source = f"""
        import pytest
        HERE = 1

        @pytest.mark.skipif({condition}, reason="not here")
        @pytest.mark.requires_model("a:1")
        def test_it(): pass
    """
    suite.write({"test_it.py": source})
    run = suite.run()
    assert (counts, asked) == (run.counts, bool(suite.ollama.requests))


@pytest.mark.parametrize("fixture", ["ollama_model", "ollama_options"])
def test_a_session_fixture_that_asks_for_a_tests_own_is_told_what_to_use(
    suite: Suite, fixture: str
) -> None:
    suite.write(
        {
            "test_it.py": f"""
                import pytest

                @pytest.fixture(scope="session")
                def mine({fixture}): pass

                def test_it(mine): pass
            """
        }
    )
    run = suite.run("--ollama-preload=a:1")
    assert {"error": 1} == run.counts
    assert (
        'In a fixture of a wider scope use ollama_models["MODEL"], or ollama_models.default'
        in run.out
    )
