"""What is said before the tests, whole: the header, hints, and what follows from a failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_warmup.config.model_specs import parse_specs
from pytest_ollama_warmup.config.sources import Sources, read_settings
from pytest_ollama_warmup.errors import LacksCapability, NotPulled, ServerUnreachable, WarmupError
from pytest_ollama_warmup.report.messages import Consequences, header, hints
from pytest_ollama_warmup.warmup.outcome import Outcome
from pytest_ollama_warmup.warmup.plan import Want, make_plan

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.settings import Settings

LLAMA = "llama3.2:1b"
URL = "http://127.0.0.1:11434"


def settings_for(environ: dict[str, str] | None = None, **given: object) -> Settings:
    options = SimpleNamespace(**{f"ollama_warmup_{name}": value for name, value in given.items()})
    return read_settings(Sources(options, environ or {}))


def failed(error: WarmupError, model: str = LLAMA) -> Outcome:
    (spec,) = parse_specs(model, "test")
    return Outcome(spec.key, model, "failed", host=URL).failing(error)


def consequences(
    settings: Settings, marks: dict[str, str], *, collected: bool = True, model: str = LLAMA
) -> Consequences:
    """Return what follows where each test of *marks* wants *model*, with its on_unavailable."""
    specs = parse_specs(model, "mark")
    wants = [Want(test=test, specs=specs, on_unavailable=word) for test, word in marks.items()]
    plan = make_plan(settings.listed, wants, up_front=settings.up_front)
    return Consequences(plan, settings, collected=collected)


@pytest.mark.parametrize(
    ("given", "environ", "verbose", "said"),
    [
        ({}, {}, False, f"{URL} (default)"),
        (
            {"preload": [LLAMA]},
            {"OLLAMA_HOST": "gpu-box"},
            False,
            "http://gpu-box:11434 (OLLAMA_HOST), preload: llama3.2:1b (--ollama-preload)",
        ),
        ({}, {}, True, f"{URL} (default), unavailable models: skip (CI not set)"),
        ({}, {"CI": "true"}, True, f"{URL} (default), unavailable models: fail (CI is set)"),
        (
            {"preload": [LLAMA]},
            {},
            True,
            f"{URL} (default), preload: llama3.2:1b (--ollama-preload), unavailable models: "
            "skip (CI not set), but listed ones end the run",
        ),
        (
            {"on_unavailable": "fail"},
            {},
            True,
            f"{URL} (default), unavailable models: fail (from --ollama-on-unavailable)",
        ),
    ],
)
def test_the_header(
    given: dict[str, object], environ: dict[str, str], verbose: bool, said: str
) -> None:
    assert said == header(settings_for(environ, **given), verbose=verbose)


def test_a_header_names_as_many_models_as_fit_on_two_lines() -> None:
    settings = settings_for(preload=[f"model-{number}:1b" for number in range(40)])
    said = header(settings, verbose=False, width=80)
    assert said.startswith(f"{URL} (default), preload: model-0:1b, model-1:1b")
    assert "and 3" in said
    assert said.endswith(" more (--ollama-preload)")
    assert len(f"ollama: {said}") <= 160


def test_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [] == list(hints(settings_for()))
    monkeypatch.setenv("OLLAMA_MODELS", LLAMA)
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://ann:s3cret@gpu-box:11434")
    assert [
        "http://a:11434 is given more than once (from --ollama-host): it is one host.",
        "/v1 at the end of the address (from --ollama-host) is a path of the API: "
        "http://b:11434 is used.",
        "OLLAMA_MODELS looks like a list of models, but is the server's storage directory; "
        "list them in OLLAMA_PRELOAD_MODELS. [models-variable]",
        "OLLAMA_BASE_URL points elsewhere (http://***@gpu-box:11434), to another server. "
        "--ollama-export OLLAMA_BASE_URL sets it to this one. [base-url-elsewhere]",
    ] == list(hints(settings_for(host="a,a,b/v1")))


@pytest.mark.parametrize(
    ("given", "environ", "marks", "who", "skips"),
    [
        ({}, {}, {"t.py::a": ""}, "wanted by t.py::a: 1 test skipped", True),
        (
            {},
            {},
            {"t.py::a": "", "t.py::b": ""},
            "wanted by t.py::a and 1 more: 2 tests skipped",
            True,
        ),
        (
            {},
            {"CI": "true"},
            {"t.py::a": ""},
            "wanted by t.py::a: 1 test fails (CI is set; --ollama-ci=no skips it)",
            False,
        ),
        (
            {"on_unavailable": "fail"},
            {},
            {"t.py::a": "", "t.py::b": "skip"},
            "wanted by t.py::a and 1 more: 1 test fails (from --ollama-on-unavailable), 1 test "
            "skipped (from the mark)",
            False,
        ),
    ],
    ids=["skip", "several", "ci", "mixed"],
)
def test_who_is_concerned_by_a_failure(
    given: dict[str, object], environ: dict[str, str], marks: dict[str, str], who: str, skips: bool
) -> None:
    follows = consequences(settings_for(environ, **given), marks)
    (failure,) = follows.failures([failed(NotPulled(LLAMA, ""))], None)
    assert (who, skips, "") == (failure.who, failure.skips, failure.warning)
    assert failure.error == (
        "llama3.2:1b is not pulled. [not-pulled]\n"
        "Run 'ollama pull llama3.2:1b', or pytest with --ollama-pull=missing."
    )


def test_a_listed_model_that_no_test_names_is_a_warning() -> None:
    settings = settings_for({"OLLAMA_PRELOAD_MODELS": LLAMA})
    (failure,) = consequences(settings, {}).failures([failed(NotPulled(LLAMA, ""))], None)
    assert "no test says that it needs it: all run without it" == failure.who
    assert "llama3.2:1b: listed, and not ready; all tests run without" == failure.warning


def test_a_server_that_fails_is_said_once_for_all_its_models() -> None:
    down = ServerUnreachable(URL, "default", "connection refused", 0.3)
    server = Outcome("", "", "failed", host=URL).failing(down)
    follows = consequences(settings_for(), {"t.py::a": "", "t.py::b": ""})
    (failure,) = follows.failures([failed(down)], server)
    assert "wanted by t.py::a and 1 more: 2 tests skipped" == failure.who


def test_what_a_model_cannot_do_concerns_the_tests_that_ask_for_it() -> None:
    settings = settings_for()
    (spec,) = parse_specs(LLAMA, "mark")
    seeing = Want(test="t.py::sees", specs=(spec._replace(capabilities=("vision",)),))
    plan = make_plan(settings.listed, [seeing], up_front=False)
    ready = Outcome(spec.key, LLAMA, "ready", host=URL, capabilities=("completion",))
    ((outcome, failure, ends),) = Consequences(plan, settings, collected=True).unable(ready)
    assert "wanted by t.py::sees: 1 test skipped" == failure.who
    assert str(LacksCapability(LLAMA, "", ("vision",), ("completion",))) == failure.error
    assert ("cannot do vision", False) == (outcome.brief, ends)


@pytest.mark.parametrize(
    ("given", "environ", "word", "said"),
    [
        ({"preload": [LLAMA]}, {}, "", "--ollama-on-unavailable=skip goes on without it."),
        (
            {},
            {"CI": "true", "OLLAMA_PRELOAD_MODELS": LLAMA},
            "",
            "CI is set; --ollama-ci=no goes on without it.",
        ),
        ({}, {}, "exit", "The mark of a test that needs it says on_unavailable='exit'."),
    ],
    ids=["listed", "ci", "mark"],
)
def test_the_way_out_of_a_run_that_ends(
    given: dict[str, object], environ: dict[str, str], word: str, said: str
) -> None:
    follows = consequences(settings_for(environ, **given), {"t.py::a": word})
    assert said == follows.way_out(failed(NotPulled(LLAMA, "")))
