"""Model names: what is one model, what is none, and where it runs; as a v0.33.0 server has it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ollama_warmup.ollama.names import ModelName, is_cloud, meant_by

FULL = "registry.ollama.ai/library/llama3.2:latest"
FIRST = "abcxyzABCXYZ0189_"


def part(more: str, longest: int) -> st.SearchStrategy[str]:
    """Return a strategy for one part of a name: *more* may follow its first character."""
    rest = st.text(FIRST + more, max_size=longest - 1)
    return st.tuples(st.sampled_from(FIRST), rest).map("".join)


# A tag with "-" can say where the model runs, and is then not taken literally.
names = st.builds(ModelName, part("-.:", 350), part("-", 80), part("-.", 80), part(".", 80))


@pytest.mark.parametrize(
    "text",
    [
        "llama3.2",
        "llama3.2:latest",
        "LLAMA3.2",
        "Llama3.2:LATEST",
        "library/llama3.2",
        "Library/llama3.2:latest",
        "registry.ollama.ai/library/llama3.2",
        "Registry.Ollama.AI/library/llama3.2:latest",
        "https://registry.ollama.ai/library/llama3.2",
        "llama3.2:local",
        "llama3.2:latest:Local",
        " llama3.2 ",
    ],
)
def test_all_spellings_of_one_model_have_one_key(text: str) -> None:
    assert FULL == ModelName.parse(text).key


@pytest.mark.parametrize(
    "text",
    ["llama3.2:1b", "team/llama3.2", "host/library/llama3.2", "llama3", "llama3.2:cloud"],
)
def test_a_name_that_differs_in_one_part_is_another_model(text: str) -> None:
    assert FULL != ModelName.parse(text).key


def test_the_same_model_of_two_registries_is_two() -> None:
    names = ("hf.co/o/r:Q4_K_M", "huggingface.co/o/r:Q4_K_M")
    assert 2 == len({ModelName.parse(name).key for name in names})


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("registry.ollama.ai", "library", "llama3.2", "1b"), "llama3.2:1b"),
        (("registry.ollama.ai", "team", "model", "latest"), "team/model"),
        (("hf.co", "Org", "Repo-GGUF", "Q4_K_M"), "hf.co/Org/Repo-GGUF:Q4_K_M"),
        (("localhost:5000", "team", "model", "tag"), "localhost:5000/team/model:tag"),
        (("localhost:5000", "team", "model", "latest"), "http://localhost:5000/team/model"),
        (("registry.ollama.ai", "library", "_x", "_y"), "_x:_y"),
        (("registry.ollama.ai", "library", "x-.", "latest"), "x-."),
    ],
)
def test_the_parts_keep_their_spelling(parts: tuple[str, ...], text: str) -> None:
    name = ModelName.parse(text)
    assert parts == (name.host, name.namespace, name.model, name.tag)


@pytest.mark.parametrize(
    ("short", "text"),
    [
        ("llama3.2:latest", "llama3.2"),
        ("LLAMA3.2:1B", "registry.ollama.ai/LIBRARY/LLAMA3.2:1B"),
        ("llama3.2:1b", "Registry.Ollama.AI/library/llama3.2:1b"),
        ("team/model:latest", "registry.ollama.ai/team/model"),
        ("host/library/model:tag", "host/library/model:tag"),
        ("h:5/n/m:latest", "http://h:5/n/m"),
    ],
)
def test_the_short_name_is_that_of_api_tags(short: str, text: str) -> None:
    assert short == ModelName.parse(text).short
    assert short == str(ModelName.parse(text))


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("the model is empty", ""),
        ("the model is empty", "  "),
        ("the model is empty", ":x"),
        ("the model is empty", "x/"),
        ("the tag is empty", "x:"),
        ("the namespace is empty", "/x"),
        ("the namespace is empty", "a//b"),
        ("the host is empty", "http:///n/m"),
        ("'@' is not allowed in the model", "x@sha256:0a109f42"),
        ("' ' is not allowed in the model", "a b"),
        ("'\\n' is not allowed in the model", "a\nb"),
        ("':' is not allowed in the model", "x:a:b"),
        ("'=' is not allowed in the model", "x=1"),
        ("'é' is not allowed in the model", "modé"),
        ("'-' is not allowed at the start of the model", "-x"),
        ("'-' is not allowed at the start of the tag", "x:-y"),
        ("'.' is not allowed at the start of the namespace", "../x"),
        ("'.' is not allowed in the namespace", "hf.co/x"),
        ("':' is not allowed in the namespace", "localhost:5000/model:tag"),
        ("'[' is not allowed at the start of the host", "[::1]/n/m"),
        ("more than a host, a namespace and a model", "x/y/z/w"),
        ("after http:// a host, a namespace and a model are needed", "http://n/m"),
        ("the model is longer than 80 characters", "x" * 81),
        ("the tag is longer than 80 characters", "x:" + "t" * 81),
        ("the namespace is longer than 80 characters", "n" * 81 + "/x"),
        ("the host is longer than 350 characters", "h" * 351 + "/n/x"),
        ("use one of :cloud, -cloud and :local", "x:cloud:local"),
        ("use one of :cloud, -cloud and :local", "x:1b-cloud:local"),
        ("use one of :cloud, -cloud and :local", "x:local:cloud"),
    ],
)
def test_no_model_name(problem: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        ModelName.parse(text)


@pytest.mark.parametrize(
    "text", ["x" * 80, "x:" + "t" * 80, "n" * 80 + "/x", "h" * 350 + "/n/x"], ids=len
)
def test_the_longest_parts_are_names(text: str) -> None:
    assert ModelName.parse(text).short.startswith(text)


@pytest.mark.parametrize(
    ("cloud", "text"),
    [
        (True, "x:cloud"),
        (True, "x:CLOUD"),
        (True, "n/x:1b:cloud"),
        (True, "x:120b-cloud"),
        (True, "x:120b-Cloud"),
        (True, " x:cloud "),
        (False, "x"),
        (False, "cloud"),
        (False, "x-cloud"),
        (False, "x-cloud:1b"),
        (False, "x:cloudy"),
        (False, "x:local"),
        (False, "h:80/n/x-cloud"),
        (False, "h:cloud/n/x"),
    ],
)
def test_the_suffix_says_whether_it_runs_in_the_cloud(cloud: bool, text: str) -> None:
    assert cloud is is_cloud(text)


@pytest.mark.parametrize(
    ("short", "text"),
    [
        ("x:cloud", "x:cloud"),
        ("x:1b-cloud", "x:1b:Cloud"),
        ("x:1b-cloud", "x:1b-cloud"),
        ("h:80/n/x:cloud", "h:80/n/x:cloud"),
        ("x:1b", "x:1b:LOCAL"),
        ("x-cloud:latest", "x-cloud:local"),
    ],
)
def test_where_it_runs_is_part_of_the_tag_but_local_is_dropped(short: str, text: str) -> None:
    assert short == ModelName.parse(text).short


@settings(deadline=None, database=None)
@given(names.filter(lambda name: name.tag.lower() not in ("cloud", "local")))
def test_every_name_survives_being_written_in_each_form(name: ModelName) -> None:
    for text in (name.key, name.short, name.key.upper(), f"https://{name.key}"):
        assert name.key == ModelName.parse(text).key
    assert name.short == ModelName.parse(name.short).short


@settings(deadline=None, database=None)
@given(st.text("aZ0_-.:/@ é", max_size=12))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except ValueError:
        return
    assert name.key == ModelName.parse(name.short).key


THERE = ["llama3.2:1b", "nomic-embed-text:latest", "qwen3:0.6b"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ollama/llama3.2:1b", "llama3.2:1b"),
        ("ollama_chat/llama3.2:1b", "llama3.2:1b"),
        ("ollama:qwen3:0.6b", "qwen3:0.6b"),
        ("openai/nomic-embed-text", "nomic-embed-text:latest"),
        ("ollama://llama3.2:1b", "llama3.2:1b"),
        ("OLLAMA/LLAMA3.2:1B", "llama3.2:1b"),
        ("llama3.2-1b", "llama3.2:1b"),
        ("lama3.2:1b", "llama3.2:1b"),
        ("nomic-embed-txt:latest", "nomic-embed-text:latest"),
        ("mistral", ""),
        ("ollama/mistral", ""),
        ("ollama/", ""),
    ],
)
def test_what_a_slip_was_meant_for_is_found(name: str, meant: str) -> None:
    assert meant == meant_by(name, THERE)


def test_names_that_no_server_should_have_do_no_harm() -> None:
    assert "" == meant_by("a:b", ["", "/:/", "é"])
