"""The suite's own warm-up request, by its hook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_ollama_warmup.emulator import ScriptedModel
from tests.conftest import LLAMA, ONE_TEST, Suite

WORKERS = pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
THERE = replace(LLAMA, present=True)


def a_hook(returned: str) -> dict[str, str]:
    return {
        "conftest.py": f"""
            import pytest

            @pytest.hookimpl(optionalhook=True)
            def pytest_ollama_warmup_request(config, spec):
                return {returned}
        """
    }


def loading(suite: Suite) -> list[tuple[str, dict[str, Any]]]:
    paths = ("/api/generate", "/api/chat", "/api/embed")
    return [(one.path, dict(one.body)) for one in suite.ollama.requests if one.path in paths]


@WORKERS
def test_a_chat_request_goes_to_chat_with_the_options_of_the_spec(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    messages = [{"role": "system", "content": "You are terse."}]
    suite.write(
        {
            **a_hook(f'{{"messages": {messages}}} if spec.name == "llama3.2:1b" else None'),
            "test_it.py": "def test_it(ollama_model): pass\n",
        }
    )
    run = suite.run("--ollama-preload=llama3.2:1b,num_ctx=2048", *workers)
    assert {"passed": 1} == run.counts
    path, body = loading(suite)[0]
    assert "/api/chat" == path
    assert {
        "model": "llama3.2:1b",
        "messages": messages,
        "stream": False,
        "options": {"num_ctx": 2048, "num_predict": 5},
    } == body
    assert [2048] == [load.options["num_ctx"] for load in suite.ollama.loads]


def test_what_the_request_says_itself_is_left_as_it_is(suite: Suite) -> None:
    suite.ollama.add(THERE)
    options = {"num_predict": 1, "num_ctx": 512}
    suite.write({**a_hook(f'{{"prompt": "Hello", "raw": True, "options": {options}}}'), **ONE_TEST})
    assert {"passed": 1} == suite.run().counts
    path, body = loading(suite)[0]
    assert ("/api/generate", True, options) == (path, body["raw"], body["options"])
    # Nor does what follows, for the keep-alive, make the server load it again.
    assert [512] == [load.options["num_ctx"] for load in suite.ollama.loads]


def test_an_input_goes_to_embed(suite: Suite) -> None:
    embed = ScriptedModel("embed:a", present=True, capabilities=("embedding",))
    suite.ollama.add(embed)
    suite.write(
        {
            **a_hook('{"input": ["one", "two"]}'),
            "test_it.py": "def test_it(ollama_model): pass\n",
        }
    )
    assert {"passed": 1} == suite.run("--ollama-preload=embed:a").counts
    assert ("/api/embed", ["one", "two"]) == (loading(suite)[0][0], loading(suite)[0][1]["input"])


@WORKERS
def test_none_leaves_our_own_request(suite: Suite, workers: list[str]) -> None:
    suite.ollama.add(THERE)
    suite.write({**a_hook("None"), **ONE_TEST})
    assert {"passed": 1} == suite.run(*workers).counts
    assert "" == loading(suite)[0][1]["prompt"]


@pytest.mark.parametrize("how", ["load", "off"])
def test_without_a_prompt_the_hook_is_not_asked(suite: Suite, how: str) -> None:
    suite.ollama.add(THERE)
    suite.write({**a_hook("1 / 0"), **ONE_TEST})
    assert {"passed": 1} == suite.run(f"--ollama-warm={how}").counts


@WORKERS
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("'Hi'", "pytest_ollama_warmup_request for llama3.2:1b: expected a dict, got 'Hi'"),
        ("{'model': 'x'}", "expected one of messages, input and prompt, not empty"),
        ("{'prompt': 'x', 'options': 3}", "options is a dict, not 3"),
        ("{'prompt': 'x', 'options': {'num_predict': 0}}", "num_predict 0 generates without end; 1 is the least"),
        ("{'prompt': {1, 2}}", "it cannot be written as JSON (Object of type set is not JSON serializable)"),
        ("1 / 0", "pytest_ollama_warmup_request failed at conftest.py:5: ZeroDivisionError: division by zero"),
    ],
    ids=["text", "empty", "options", "endless", "no-json", "raises"],
)  # fmt: skip
def test_a_request_that_is_none_ends_the_run_with_its_reason(
    suite: Suite, workers: list[str], returned: str, message: str
) -> None:
    suite.ollama.add(THERE)
    suite.write({**a_hook(returned), **ONE_TEST})
    run = suite.run(*workers)
    assert 4 == run.ret
    assert message in run.err + run.out
    assert "INTERNALERROR" not in run.err + run.out
    assert [] == loading(suite)


def test_a_request_that_the_server_refuses_is_named(suite: Suite) -> None:
    suite.ollama.add(THERE)
    suite.write({**a_hook('{"prompt": "x", "think": True}'), **ONE_TEST})
    run = suite.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "does not support thinking" in run.out
    assert "The request is that of the suite's hook pytest_ollama_warmup_request." in run.out


@WORKERS
def test_a_model_that_is_known_only_at_run_time_is_warmed_by_it_too(
    suite: Suite, workers: list[str]
) -> None:
    suite.ollama.add(THERE)
    suite.write(
        {
            **a_hook('{"prompt": "x", "options": {"num_predict": 2}}'),
            "test_it.py": "def test_it(ollama_models): ollama_models['llama3.2:1b']\n",
        }
    )
    assert {"passed": 1} == suite.run(*workers).counts
    assert "x" == loading(suite)[0][1]["prompt"]
