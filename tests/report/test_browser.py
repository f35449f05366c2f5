"""The page in headless Chromium: every chart is drawn, nothing is fetched, it fits a phone, the legend works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Any, page: Path, width: int = 1280, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The loaded page, its console errors, and every address it asked for."""
    view = browser.new_page(viewport={"width": width, "height": 900}, **options)
    errors: list[str] = []
    asked: list[str] = []
    view.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    view.on("pageerror", lambda e: errors.append(str(e)))
    view.on("request", lambda r: asked.append(r.url))
    view.goto(page.as_uri())
    view.wait_for_selector("html[data-charts=done]", timeout=60_000)
    return view, errors, asked


def test_all_charts_are_drawn_and_nothing_is_fetched(browser: Any, page: Path) -> None:
    view, errors, asked = opened(browser, page)
    charts = view.locator("[data-chart]")
    assert charts.count() >= 8
    assert view.locator("[data-drawn=yes] svg .mark-symbol path, [data-drawn=yes] svg .mark-rule line").count() > 50
    assert view.locator("[data-chart]:not([data-drawn=yes])").count() == 0
    for i in range(charts.count()):
        box = charts.nth(i).locator("svg").first.bounding_box()
        assert box and box["width"] > 200 and box["height"] > 80
    assert errors == []
    assert asked == [page.as_uri()]
    view.close()


@pytest.mark.parametrize("width", [360, 390, 768])
def test_it_fits_a_narrow_screen(browser: Any, page: Path, width: int) -> None:
    view, errors, _ = opened(browser, page, width)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    view.close()


def test_the_legend_brings_a_method_out(browser: Any, page: Path) -> None:
    view, _, _ = opened(browser, page)
    faded = (
        "Array.from(document.querySelectorAll('svg .mark-symbol path')).filter(p => p.getAttribute('opacity') < 0.5)"
    )
    assert view.evaluate(f"{faded}.length") == 0
    view.locator(".legend button").nth(1).click()
    view.wait_for_function(f"{faded}.length > 20", timeout=10_000)
    assert view.locator(".legend button[aria-pressed=true]").count() == 1
    view.close()


def test_the_table_sorts_with_unknowns_last(browser: Any, page: Path) -> None:
    view, _, _ = opened(browser, page)
    view.locator("table.main thead button", has_text="Perplexity").click()
    values = view.eval_on_selector_all("table.main tbody tr", "rows => rows.map(r => r.cells[6].dataset.sort)")
    known = [float(v) for v in values if v is not None]
    assert known == sorted(known) and values[-1] is None
    view.close()


def test_dark_mode_is_dark_and_readable(browser: Any, page: Path) -> None:
    view, _, _ = opened(browser, page, color_scheme="dark")
    style = "getComputedStyle(document.querySelector({!r})).{}"
    assert view.evaluate(style.format("body", "backgroundColor")) == "rgb(18, 20, 23)"
    assert view.evaluate(style.format(".chart svg text", "fill")) == "rgb(184, 192, 201)"
    view.close()
