"""The pages that lead users name only what there is, and leave out nothing that they come with."""

from __future__ import annotations

import configparser
import re
from functools import cache
from pathlib import Path

import pytest

from pytest_ollama_warmup.config.options import OPTIONS
from tests.command import Run

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("guide", "ci", "scaling")
PAGES = {name: (DOCS / f"{name}.md").read_text("utf-8") for name in NAMES}
EACH = pytest.mark.parametrize("page", NAMES)

# What the server reads (Ollama v0.33, envconfig/config.go), and the recipes.
SERVERS = {"OLLAMA_MODELS", "OLLAMA_HOST", "OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS"}

# What client libraries read, and --ollama-export sets.
SERVERS |= {"OLLAMA_BASE_URL", "OLLAMA_API_BASE"}

# Of pytest-recording and pytest-vcr.
RECORDERS = {"--record-mode", "--block-network", "--disable-recording"}
RECORDERS |= {"--vcr-record", "--disable-vcr"}

# What somebody with a guide, scripts and services for preloading has at hand, and will look for.
AT_HAND = """
    model_preloader  model_puller  docker compose up -d  docker compose logs model_preloader
    docker compose ps model_preloader  docker compose up -d model_preloader  restart: "no"
    OLLAMA_PRELOAD_MODELS  OLLAMA_MODELS  OLLAMA_HOST  http://localhost:11434
    python3 scripts/preload_models.py  ./scripts/preload_models.sh  curl  /api/generate
    docker exec -it ollama ollama run llama3.2:1b "Hi"  docker exec -it ollama ollama list
    ollama pull  service_completed_successfully  service_started  "Hi"  five tokens
    nvidia-smi  free -h  one model at a time  subset  production  development  httpx.post
    limit of 120 s  quick start  memory is taken  the start takes longer  paid once
"""


def code_of(page: str) -> list[str]:
    """Return the code of a page: what stands in backticks, and the lines of its blocks."""
    blocks = re.findall(r"^```.*?^```", page, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()[1:-1]]
    lines += re.findall(r"^ {4}(.*)", page, re.M)
    return [
        *lines,
        *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)),
    ]


@cache
def help_of(command: str) -> str:
    run = Run(command, "--help")
    assert 0 == run.ret, f"there is no command {command}"
    return run.out


@EACH
def test_a_page_names_only_options_that_there_are(page: str) -> None:
    ours = {option.flag for option in OPTIONS}
    found = set(re.findall(r"--ollama-[\w-]+", PAGES[page]))
    assert found
    assert set() == found - ours
    keys = {key for code in code_of(PAGES[page]) for key in re.findall(r"\bollama_[a-z_]+", code)}
    fixtures = {"ollama_host", "ollama_warmup_request", "ollama_model"}
    fixtures |= {"ollama_models", "ollama_options"}
    assert set() == keys - {option.ini for option in OPTIONS} - fixtures


@EACH
def test_a_page_names_only_variables_that_somebody_reads(page: str) -> None:
    found = set(re.findall(r"\bOLLAMA_[A-Z_]*[A-Z]\b", PAGES[page]))
    assert found
    assert set() == found - SERVERS - {option.environ for option in OPTIONS}


@EACH
def test_a_page_gives_commands_only_flags_that_they_take(page: str) -> None:
    commands = [code for code in code_of(PAGES[page]) if "ollama-warmup " in code]
    assert commands
    for code in commands:
        for command, rest in re.findall(r"ollama-warmup ([a-z][\w-]*)([^;&|]*)", code):
            taken = help_of(command)
            for flag in re.findall(r"(?<!\w)--[\w-]+", rest):
                assert flag in taken, code


def test_flags_that_the_guide_names_without_their_command_are_of_one() -> None:
    every = "".join(help_of(command) for command in ("preload", "pull", "status", "unload"))
    ours = {option.flag for option in OPTIONS} | RECORDERS
    for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGES["guide"]):
        assert flag in ours or flag in every, flag


def anchors_of(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    links = [
        (path, link)
        for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    ]
    assert len(links) > 20
    for path, link in links:
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = path.parent / name if name else path
        assert target.exists(), (path.name, link)
        assert not anchor or anchor in anchors_of(target), (path.name, link)


def test_the_guide_answers_to_everything_that_its_reader_has_at_hand() -> None:
    for what in re.split(r"\s{2,}", AT_HAND.strip()):
        assert what in PAGES["guide"], what


@EACH
def test_every_row_of_a_table_has_the_cells_of_its_head(page: str) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", PAGES[page], re.M)
    assert tables
    for table in tables:
        # A bar inside of backticks parts cells too.
        assert 1 == len({line.count("|") for line in table.splitlines()}), table


def test_tox_lets_through_what_the_plugin_reads() -> None:
    (block,) = re.findall(r"^```ini\n(.*?)^```", PAGES["ci"], re.M | re.S)
    parser = configparser.ConfigParser()
    parser.read_string(block)
    assert ["CI", "GITHUB_*", "OLLAMA_*"] == parser["testenv"]["pass_env"].split(", ")


def test_readme_and_reference_lead_to_every_page() -> None:
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    reference = (DOCS / "reference.md").read_text("utf-8")
    for name in NAMES:
        assert f"(docs/{name}.md)" in readme
        assert f"({name}.md)" in reference
