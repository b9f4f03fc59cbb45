"""Suites that pytest-recording or pytest-vcr replays from cassettes: no model is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import LLAMA, Suite

RECORDED = """
    import os

    import httpx
    import pytest

    pytestmark = [pytest.mark.vcr, pytest.mark.requires_model("llama3.2:1b")]

    def ask():
        body = {"model": "llama3.2:1b", "prompt": "Hi", "stream": False}
        return httpx.post(os.environ["SERVER"] + "/api/generate", json=body).json()

    def test_tone():
        assert ask()["done"]

    class TestLength:
        @pytest.mark.parametrize("limit", [5, "a/b"])
        def test_short(self, limit, ollama_model, ollama_models):
            assert ("llama3.2:1b", "llama3.2:1b") == (ollama_model, ollama_models[ollama_model].name)
            assert ask()["done"]
"""
WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
RECORDING = ("-p", "pytest_recording.plugin")


def test_what_is_recorded_with_a_server_is_replayed_without_one(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.ollama.add(replace(LLAMA, present=True))
    suite.write({"test_chat.py": RECORDED})
    monkeypatch.setenv("SERVER", suite.ollama.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    recorded = suite.run(*RECORDING, "--record-mode=once")
    assert ({"passed": 3}, 1) == (recorded.counts, len(suite.ollama.loads))
    before = len(suite.ollama.requests)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("CI", "1")
    for args in ([], ["--record-mode=none", "-n2"], ["--record-mode=once"], ["--block-network"]):
        run = suite.run(*RECORDING, *args)
        assert ({"passed": 3}, []) == (run.counts, run.ours)
    assert before == len(suite.ollama.requests)


# What collection needs to know of the plugin: options, and fixtures by their names.
PLUGINS = {
    "pytest_recording/__init__.py": "",
    "pytest_recording/plugin.py": """
        import pytest

        class Hooks:
            def pytest_recording_configure(self, config, vcr): pass

        def pytest_addhooks(pluginmanager):
            pluginmanager.add_hookspecs(Hooks)

        def pytest_addoption(parser):
            parser.addoption("--record-mode", default=None)
            parser.addoption("--disable-recording", action="store_true")

        def pytest_configure(config):
            config.addinivalue_line("markers", "vcr: replayed")
            config.addinivalue_line("markers", "default_cassette: its name")

        @pytest.fixture(scope="session")
        def record_mode(): pass
        @pytest.fixture(scope="session")
        def disable_recording(): pass
        @pytest.fixture
        def vcr_config(): return {}
        @pytest.fixture
        def vcr_markers(): pass
        @pytest.fixture(scope="module")
        def vcr_cassette_dir(): pass
        @pytest.fixture
        def default_cassette_name(): pass
        @pytest.fixture(autouse=True)
        def vcr(vcr_markers, vcr_cassette_dir, record_mode, disable_recording): pass
    """,
    "pytest_vcr.py": """
        import pytest

        def pytest_addoption(parser):
            parser.addoption("--vcr-record", dest="vcr_record", default=None)
            parser.addoption("--vcr-record-mode", dest="deprecated_vcr_record", default=None)
            parser.addoption("--disable-vcr", dest="disable_vcr", action="store_true")

        def pytest_configure(config):
            config.addinivalue_line("markers", "vcr: replayed")

        @pytest.fixture(autouse=True)
        def _vcr_marker(): pass
        @pytest.fixture(scope="module")
        def vcr(vcr_config, vcr_cassette_dir): pass
        @pytest.fixture
        def vcr_cassette(vcr, vcr_cassette_name): pass
        @pytest.fixture(scope="module")
        def vcr_cassette_dir(): pass
        @pytest.fixture
        def vcr_cassette_name(): pass
        @pytest.fixture(scope="module")
        def vcr_config(): return {}
    """,
    "needed.py": """
        def pytest_collection_finish(session):
            from pytest_ollama_warmup.session.marks import wants_of

            wants = wants_of(session.items)
            print("needed:", *(want.test.rpartition("::")[2].removeprefix("test_") for want in wants))
    """,
}
VCR = ("-p", "pytest_vcr")
CASSETTE = "interactions:\n- request:\n    body: ''\n"
MARKED = """
    import pytest

    model = pytest.mark.requires_model("llama3.2:1b")

    @model
    def test_live(): pass

    @model
    @pytest.mark.vcr
    def test_plain(): pass

    @model
    @pytest.mark.vcr
    @pytest.mark.parametrize("a", ["x/y"])
    class TestIt:
        def test_there(self, a): pass
        def test_lost(self, a): pass

    @model
    @pytest.mark.vcr(record_mode="none")
    def test_none(): pass

    @model
    @pytest.mark.vcr(record_mode="new_episodes")
    def test_more(): pass

    @model
    @pytest.mark.vcr(record_mode="once")
    def test_empty(): pass

    @model
    @pytest.mark.vcr(ignore_localhost=True, filter_headers=["a"])
    def test_local(): pass

    @model
    @pytest.mark.vcr(ignore_localhost=False, before_record_request=None, match_on=["uri"])
    def test_closed(): pass
"""
SAVED = {
    "test_it.py": MARKED,
    "cassettes/test_it/test_plain.yaml": CASSETTE,
    "cassettes/test_it/TestIt.test_there[x-y].yaml": CASSETTE,
    "cassettes/test_it/test_empty.yaml": "",
    "cassettes/test_plain.yaml": CASSETTE,
    "cassettes/TestIt.test_there[x/y].yaml": CASSETTE,
    "cassettes/test_empty.yaml": "",
}
EVERY = "live plain there[x/y] lost[x/y] none more empty local closed"


def needed(suite: Suite, *args: str) -> str:
    """Which tests need a model, by their names."""
    run = suite.run("-p", "needed", "--collect-only", "-p", "no:randomly", *args)
    assert 0 == run.ret
    return next(line for line in run.out.splitlines() if line.startswith("needed:"))[8:].strip()


@pytest.fixture
def saved(suite: Suite) -> Suite:
    """A suite some of whose tests were recorded."""
    suite.write({**PLUGINS, **SAVED})
    return suite


@pytest.mark.parametrize(
    ("args", "left"),
    [
        ([], EVERY),
        # By default pytest-recording records nothing.
        ([*RECORDING], "live more empty local"),
        ([*RECORDING, "--record-mode=none"], "live more empty local"),
        ([*RECORDING, "--record-mode=once"], "live lost[x/y] more empty local closed"),
        ([*RECORDING, "--record-mode=new_episodes"], EVERY.replace(" none", "")),
        ([*RECORDING, "--record-mode=all"], EVERY.replace(" none", "")),
        ([*RECORDING, "--record-mode=rewrite"], EVERY),
        ([*RECORDING, "--disable-recording"], EVERY),
        # pytest-vcr records where no cassette is.
        ([*VCR], "live lost[x/y] more empty local closed"),
        ([*VCR, "--vcr-record=none"], "live local"),
        ([*VCR, "--vcr-record-mode=none"], "live local"),
        ([*VCR, "--vcr-record=all"], EVERY),
        ([*VCR, "--vcr-record=once"], "live lost[x/y] none more empty local closed"),
        ([*VCR, "--vcr-record=none", "--disable-vcr"], EVERY),
    ],
    ids=lambda one: " ".join(one[1:]) if isinstance(one, list) else "",
)
def test_a_test_that_is_replayed_for_certain_needs_none(
    saved: Suite, args: list[str], left: str
) -> None:
    assert left == needed(saved, *args)


FIXTURE = "import pytest\n@pytest.fixture(scope='module')\ndef "


@pytest.mark.parametrize(
    ("conftest", "replayed"),
    [
        ("vcr_config(): return {'filter_headers': [str('a')], 'record_mode': 'none'}", True),
        ("vcr_config():\n    'Ours.'\n    return dict(record_mode='none')", True),
        ("vcr_config(): return {'record_mode': 'all'}", False),
        ("vcr_config(): return {'record_mode': str('none')}", False),
        ("vcr_config(): return {'ignore_hosts': ['gpu-box']}", False),
        ("vcr_config(): return {'before_record_request': print}", False),
        ("vcr_config(): return {**{}}", False),
        ("vcr_config():\n    config = {}\n    return config", False),
        ("record_mode(): return 'all'", False),
        ("vcr_markers(): return []", False),
        # It matters only where a cassette has to be found.
        ("vcr_cassette_dir(): return 'elsewhere'", True),
    ],
)
def test_what_the_suite_sets_for_vcr_counts_if_it_can_be_read(
    saved: Suite, conftest: str, replayed: bool
) -> None:
    saved.write({"conftest.py": FIXTURE + conftest})
    assert replayed is ("plain" not in needed(saved, *RECORDING).split())


@pytest.mark.parametrize(
    ("files", "test"),
    [
        ({"conftest.py": FIXTURE + "vcr_cassette_dir(): return 'elsewhere'"}, "plain"),
        ({"conftest.py": FIXTURE + "vcr_config(): return {'serializer': 'json'}"}, "plain"),
        ({"conftest.py": FIXTURE + "vcr_config(): return {'persister': print}"}, "plain"),
        ({"conftest.py": FIXTURE + "default_cassette_name(): return 'test_plain'"}, "plain"),
        ({"conftest.py": "def pytest_recording_configure(config, vcr): pass"}, "plain none"),
    ],
)
def test_once_needs_a_cassette_where_it_is_looked_for(
    saved: Suite, files: dict[str, str], test: str
) -> None:
    saved.write(files)
    found = needed(saved, *RECORDING, "--record-mode=once").split()
    assert set(test.split()) <= set(found)


@pytest.mark.parametrize(
    "mark",
    [
        "vcr('cassettes/test_it/test_plain.yaml')",
        "vcr(PATH)",
        "vcr\n@pytest.mark.default_cassette('mine')",
        "vcr\n@pytest.mark.default_cassette('mine.yaml')",
        "vcr(serializer='json')",
    ],
)
def test_a_cassette_of_another_name_is_found(saved: Suite, mark: str) -> None:
    folder = saved.pytester.path / "cassettes" / "test_more"
    saved.write(
        {
            "test_more.py": (
                f"import pytest\nPATH = {str(folder / 'mine.yaml')!r}\n"
                f"@pytest.mark.requires_model('llama3.2:1b')\n@pytest.mark.{mark}\n"
                "def test_one(): pass\n"
            ),
            "cassettes/test_more/mine.yaml": CASSETTE,
            "cassettes/test_more/cassettes/test_it/test_plain.yaml": CASSETTE,
            "cassettes/test_more/test_one.json": '{"version": 1, "interactions": [{"request": {}}]}',
        }
    )
    assert "" == needed(saved, *RECORDING, "--record-mode=once", "test_more.py")


@WORKERS
def test_beside_one_that_needs_its_model_each_gets_what_it_needs(
    saved: Suite, workers: list[str]
) -> None:
    saved.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = late:1b\n",
            "test_it.py": """
                import pytest

                @pytest.mark.vcr
                @pytest.mark.requires_model("absent:1b")
                def test_replayed(ollama_model, ollama_models, ollama_options):
                    assert ("absent:1b", {}) == (ollama_model, ollama_options)
                    assert "other:1b" == ollama_models["other:1b"].name

                @pytest.mark.vcr
                def test_asks_late(request):
                    assert "late:1b" == request.getfixturevalue("ollama_model")

                @pytest.mark.requires_model("llama3.2:1b")
                def test_live(ollama_models):
                    assert ollama_models["llama3.2:1b"].digest
            """,
        }
    )
    run = saved.run(*RECORDING, "--ollama-pull=missing", *workers)
    assert {"passed": 3} == run.counts
    assert ["llama3.2:1b"] == [load.model for load in saved.ollama.loads]
    assert "absent" not in run.out


@pytest.mark.parametrize(
    ("args", "sent"),
    [([*VCR], 0), ([*RECORDING, "--record-mode=once"], 0), ([*VCR, "--vcr-record=all"], 1)],
)
def test_no_load_begins_early_for_what_the_last_run_has_recorded(
    saved: Suite, args: list[str], sent: int
) -> None:
    saved.ollama.add(replace(LLAMA, present=True))
    saved.write(
        {
            "pytest.ini": "[pytest]\nollama_preload = llama3.2:1b\n",
            "test_new.py": """
                import pytest

                @pytest.mark.vcr
                @pytest.mark.requires_model("llama3.2:1b")
                def test_one(): pass
            """,
        }
    )
    args = [*args, "test_new.py"]
    assert ({"passed": 1}, 1) == (saved.run(*args).counts, len(saved.ollama.loads))
    saved.write({"cassettes/test_one.yaml": CASSETTE, "cassettes/test_new/test_one.yaml": CASSETTE})
    before = len(saved.ollama.requests)
    assert {"passed": 1} == saved.run(*args).counts
    assert (sent > 0) is (len(saved.ollama.requests) > before)
