"""The pages that lead users name only what there is, and leave out nothing that they come with."""

from __future__ import annotations

import configparser
import re
from functools import cache
from pathlib import Path

import pytest

from docs.generated import FIXTURES, public_names
from pytest_ollama_warmup.config.options import OPTIONS
from tests.command import Run

DOCS = Path(__file__).parents[1] / "docs"
EVERY = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text("utf-8")
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts
}
# Pages that certainly name options and variables, and pages with commands.
PAGES = ("move/compose", "how-to/ci", "how-to/several-servers")
COMMANDS = ("move/compose", "move/ci-pull", "how-to/ci", "explanation/load-balancers")
GUIDE = EVERY["move/compose"]
EACH = pytest.mark.parametrize("page", EVERY)

# What the server reads (Ollama v0.33, envconfig/config.go), and the recipes.
SERVERS = {"OLLAMA_MODELS", "OLLAMA_HOST", "OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS"}
SERVERS |= {"OLLAMA_CONTEXT_LENGTH", "OLLAMA_NOPRUNE", "OLLAMA_MAX_QUEUE", "OLLAMA_NO_CLOUD"}

# What client libraries read, and --ollama-export sets.
SERVERS |= {"OLLAMA_BASE_URL", "OLLAMA_API_BASE"}

# What the plugin reads besides its options.
SERVERS |= {"OLLAMA_API_KEY"}

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
    # A heading's link repeats its text; a family is named by its beginning.
    found = set(re.findall(r"--ollama-[a-z][\w-]*", EVERY[page]))
    assert found or page not in PAGES
    assert set() == found - ours
    keys = {key for code in code_of(EVERY[page]) for key in re.findall(r"\bollama_[a-z_]+", code)}
    known = {option.ini for option in OPTIONS} | set(public_names(FIXTURES))
    known |= {"ollama_keep_order", "ollama_home", "ollama_warmup", "ollama_warmup_request"}
    # A property in JUnit files, LiteLLM's prefix, and an argument of LlamaIndex.
    known |= {"ollama_version", "ollama_chat", "ollama_additional_kwargs"}
    assert set() == keys - known


@EACH
def test_a_page_names_only_variables_that_somebody_reads(page: str) -> None:
    found = set(re.findall(r"\bOLLAMA_[A-Z_]*[A-Z]\b", EVERY[page]))
    assert found or page not in PAGES
    assert set() == found - SERVERS - {option.environ for option in OPTIONS}


@EACH
def test_a_page_gives_commands_only_flags_that_they_take(page: str) -> None:
    commands = [code for code in code_of(EVERY[page]) if re.search(r"\bollama-warmup ", code)]
    assert commands or page not in COMMANDS
    for code in commands:
        for command, rest in re.findall(r"\bollama-warmup ([a-z][\w-]*)([^;&|#]*)", code):
            taken = help_of(command)
            for flag in re.findall(r"(?<!\w)--[\w-]+", rest):
                assert flag in taken, code


def test_flags_that_the_guide_names_without_their_command_are_of_one() -> None:
    every = "".join(help_of(command) for command in ("preload", "pull", "status", "unload"))
    ours = {option.flag for option in OPTIONS}
    for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", GUIDE):
        assert flag in ours or flag in every, flag
    recorded = EVERY["reference/recorded-suites"]
    for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", recorded):
        assert flag in ours | RECORDERS, flag


def anchors_of(path: Path) -> set[str]:
    text = path.read_text("utf-8")
    for included in re.findall(r"^```\{include\} (\S+)$", text, re.M):
        text += (path.parent / included).read_text("utf-8")
    heads = re.findall(r"^#+ (.*)", text, re.M)
    labels = re.findall(r"^\(([\w-]+)\)=$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads} | {*labels}


def test_links_lead_somewhere() -> None:
    pages = [*(DOCS / f"{name}.md" for name in EVERY), DOCS.parent / "README.md"]
    links = [
        (path, link)
        for path in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    ]
    assert len(links) > 60
    for path, link in links:
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = path.parent / name if name else path
        assert target.exists(), (path.name, link)
        assert not anchor or anchor in anchors_of(target), (path.name, link)


def test_the_guide_answers_to_everything_that_its_reader_has_at_hand() -> None:
    for what in re.split(r"\s{2,}", AT_HAND.strip()):
        assert what in GUIDE, what


@EACH
def test_every_row_of_a_table_has_the_cells_of_its_head(page: str) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", EVERY[page], re.M)
    assert tables or page not in PAGES
    for table in tables:
        # A bar inside of backticks separates cells too, unless it is escaped.
        assert 1 == len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}), table


def test_tox_lets_through_what_the_plugin_reads() -> None:
    parser = configparser.ConfigParser()
    parser.read(DOCS / "examples" / "tox" / "tox.ini")
    assert ["CI", "GITHUB_*", "OLLAMA_*"] == parser["testenv"]["pass_env"].split(", ")


def test_the_readme_leads_to_every_part_of_the_documentation() -> None:
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    entries = re.findall(r"^:link: (\S+)$", EVERY["index"], re.M)
    assert len(entries) == 6
    for name in entries:
        assert f"(docs/{name}.md)" in readme


def test_the_documentation_that_is_built_is_not_kept() -> None:
    ignored = (DOCS.parent / ".gitignore").read_text("utf-8").splitlines()
    assert "docs/_build/" in ignored
