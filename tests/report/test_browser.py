"""The page in a browser: no request, no complaint, readable on a phone, dark where asked, and it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, find_browser
from report_pages import Page
from test_report_page import FIGURES

CANVAS = "document.getElementById('heatmap-canvas')"

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="need Chromium, e.g. `apt-get install chromium`, got none"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    running = Browser(program, tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture
def page(full_page) -> Page:
    return full_page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_page_makes_no_request_has_every_figure_and_fits(browser, page, width, dark) -> None:
    browser.open(page.path, width, dark=dark)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.path.as_uri()]
    for key in FIGURES:
        box = f"document.getElementById({key!r}).getBoundingClientRect()"
        assert browser.evaluate(f"{box}.height > 30 && {box}.right <= innerWidth && {box}.left >= 0"), key
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    # Text in charts keeps its size on every screen.
    sizes = "[...document.querySelectorAll('text')].map(text => parseFloat(getComputedStyle(text).fontSize))"
    assert browser.evaluate(f"Math.min(...{sizes})") >= 12


def test_no_text_of_a_chart_leaves_the_screen_of_a_phone(browser, page) -> None:
    browser.open(page.path, 375)
    outside = browser.evaluate(
        "[...document.querySelectorAll('svg.chart text')].filter(text => {"
        " const box = text.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth; })"
        ".map(text => text.textContent)"
    )
    assert outside == []
    overlapping = browser.evaluate(
        "[...document.querySelectorAll('.figure')].filter(figure => {"
        " const one = figure.previousElementSibling.getBoundingClientRect();"
        " const other = figure.getBoundingClientRect();"
        " return one.right > other.left && one.bottom > other.top + 2; }).map(figure => figure.textContent)"
    )
    assert overlapping == []


def test_the_scheme_of_the_reader_is_followed(browser, page) -> None:
    grounds = []
    for dark in (False, True):
        browser.open(page.path, dark=dark)
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")))
    assert grounds[0] > 3 * 240 and grounds[1] < 3 * 32


def test_pointing_at_the_heatmap_says_layer_neurons_and_value(browser, page, activations) -> None:
    browser.open(page.path)
    browser.evaluate(CANVAS + ".scrollIntoView({block: 'center', behavior: 'instant'})")
    box = browser.evaluate(f"(b => [b.left, b.top, b.width, b.height])({CANVAS}.getBoundingClientRect())")
    rows, columns = 8, 320
    row, column = 5, 201
    browser.move(box[0] + (column + 0.5) / columns * box[2], box[1] + (row + 0.5) / rows * box[3])
    said = browser.evaluate("document.getElementById('heatmap-value').textContent")
    first, last = column * 512 // columns, (column + 1) * 512 // columns
    value = float(np.mean(activations[row, first:last]))
    assert said.startswith(f"Layer 5, neurons {first + 1} to {last} of 512 by activity: ")
    assert float(said.split()[-1]) == pytest.approx(value, rel=6e-3)
    browser.evaluate(f"{CANVAS}.focus()")
    browser.press("ArrowUp")
    assert browser.evaluate("document.getElementById('heatmap-value').textContent").startswith("Layer 4,")
    drawn = browser.evaluate(
        "(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        f" return new Set(d).size; }})({CANVAS})"
    )
    assert drawn > 30


def test_bars_say_their_figures_on_hovering(browser, page) -> None:
    browser.open(page.path)
    titles = browser.evaluate("[...document.querySelectorAll('#waterfall title')].map(t => t.textContent)")
    assert any(title.startswith("drop_layers: saved 278,784 bytes") for title in titles)
    figures = "figure svg.chart"
    unlabelled = browser.evaluate(
        f"[...document.querySelectorAll('{figures}')].filter(s => !s.getAttribute('aria-label')).length"
    )
    assert unlabelled == 0


def test_hostile_answers_run_nothing(browser, mobile, tmp_path: Path) -> None:
    from gemma_surgery.report.answers import Answer
    from gemma_surgery.report.material import Material
    from gemma_surgery.report.outcome import read_outcome
    from gemma_surgery.report.page import render_page

    attack = "</p></div><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
    path = tmp_path / "attack.html"
    answers = (Answer(attack, attack, "no"),)
    path.write_text(render_page(Material(read_outcome(mobile), answers=answers, reference=attack)), "utf-8")
    browser.open(path)
    assert browser.complaints == [] and browser.evaluate("window.harmed") is None


def test_without_scripts_the_heatmap_is_a_picture(browser, page) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page.path)
        still = "document.querySelector('.still')"
        assert browser.evaluate(f"{still}.naturalWidth > 500 && {still}.getBoundingClientRect().width > 100")
        assert browser.evaluate(f"{CANVAS}.getBoundingClientRect().width") == 0
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_the_page_prints(browser, page) -> None:
    browser.open(page.path)
    browser.send("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    document = browser.send("Page.printToPDF", printBackground=True)["data"]
    assert len(document) > 20_000
