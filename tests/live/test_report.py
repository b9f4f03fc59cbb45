"""The page of a report in a browser, and the record of a run with a real server."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import jsonschema
import pytest

from pytest_ollama_warmup.report.files import page
from tests.browser import CHROMIUM, Browser
from tests.test_report import SCHEMA
from tests.unit.test_reports import EVIL, FULL, poisoned, ran, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import UserSuite
    from tests.live.registry import Registry
    from tests.live.server import RealServer

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
SCHEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
WIDTHS = pytest.mark.parametrize("width", [1280, 390])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def written(folder: Path, text: str) -> Path:
    path = folder / "r.html"
    path.write_text(text, "utf-8")
    return path


@needs_browser
@SCHEMES
@WIDTHS
def test_a_page_asks_for_nothing_and_fits(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    path = written(tmp_path, page(FULL.to_dict()))
    browser.show(path, width, dark=dark)
    assert ([path.as_uri()], []) == (browser.requests, browser.console)
    assert browser.run("document.documentElement.scrollWidth") <= width
    lanes = browser.run("[...document.querySelectorAll('.lane .name')].map(n => n.textContent)")
    assert ["llama3.2:1b,num_ctx=4096", "phi9", "tests"] == [one for one in lanes if one]
    # Dark and light are told apart by what is behind the text.
    red = int(
        browser.run("getComputedStyle(document.documentElement).backgroundColor")
        .split("(")[1]
        .split(",")[0]
    )
    assert dark == (red < 128)
    too_small = browser.run(
        "[...document.querySelectorAll('.track i')].filter(b => b.getBoundingClientRect().width < 2).length"
    )
    assert 0 == too_small


@needs_browser
def test_the_mouse_and_the_keyboard_give_the_numbers(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(tmp_path, page(FULL.to_dict())))
    browser.point_at(".track .load")
    said = "document.getElementById('tip').textContent"
    assert "llama3.2:1b,num_ctx=4096: loaded in 2 s, at 24 s" == browser.run(said)
    browser.press("Tab")
    shown = [browser.run(said)]
    for key in ("ArrowRight", "End", "ArrowLeft", "Home"):
        browser.press(key)
        shown.append(browser.run(said))
    assert [
        "pulled 1.3 GB in 24 s",
        "verified in 1 s",
        "reloaded in 1.4 s before test_a.py::test_2",
        "loaded in 2 s",
        "pulled 1.3 GB in 24 s",
    ] == [one.partition(": ")[2].rpartition(", at ")[0] for one in shown]
    browser.press("Tab")
    assert browser.run(said).startswith("phi9: pull failed after 0.5 s")
    assert 1 == browser.run("document.querySelectorAll('.track i.on').length")


@needs_browser
@pytest.mark.parametrize("kind", EVIL)
def test_no_text_runs_or_loads_anything(browser: Browser, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, page(poisoned(EVIL[kind])))
    browser.show(path, 390)
    assert ([path.as_uri()], []) == (browser.requests, browser.console)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert 1 == browser.run("document.scripts.length")


@needs_browser
def test_ten_thousand_tests_are_drawn_in_a_second(browser: Browser, tmp_path: Path) -> None:
    tests = tuple(
        ran(f"test_it.py::test_it[{i}]", 30 + i // 16 * 0.05, 0.04, by=f"gw{i % 16}", waited_s=0.06)
        for i in range(10_000)
    )
    path = written(tmp_path, page(record(tests=tests).to_dict()))
    assert path.stat().st_size < 2_000_000
    browser.show(path)
    took_ms = browser.run(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
        "() => done(performance.now()))))"
    )
    assert took_ms < 1000
    assert 17 == browser.run("document.querySelectorAll('.track[tabindex]').length")


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["single", "n2"])
def test_the_record_of_a_real_server_fits_its_schema(
    suite: UserSuite, server: RealServer, own_registry: Registry, workers: list[str]
) -> None:
    model = own_registry.name("completion")
    suite.write(
        {
            "test_it.py": f"""
                import pytest

                @pytest.mark.requires_model("{model}")
                @pytest.mark.parametrize("n", range(4))
                def test_it(n): pass
            """
        }
    )
    begin = time.time()
    suite.run(f"--ollama-preload={model},insecure=true", "--ollama-report=r.json", *workers)
    found = json.loads((suite.pytester.path / "r.json").read_text("utf-8"))
    jsonschema.validate(found, SCHEMA)
    (one,) = found["models"]
    assert {"show", "pull", "load"} <= {step["kind"] for step in one["steps"]}
    assert all(begin - 5 < step["start"] < time.time() for step in one["steps"])
    assert one["memory"] > 0
    assert 0 <= one["vram"] <= one["memory"]
    assert 64 == len(one["digest"])
    assert ["passed"] * 4 == [test["outcome"] for test in found["tests"]]
    assert all(test["cold"] == [] for test in found["tests"])
