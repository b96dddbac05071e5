"""The built book in headless Chromium: every page, in the light theme over http and in the dark one from disk.

Each page is opened once a theme; everything that is looked at then is one test below, so that a failure says
which page, which theme and what.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field
from typing import Any

import pytest
from bookkit import PAGES, Site, markdown_of
from PIL import Image

pytestmark = pytest.mark.browser

# How each theme's pages are reached: together the two cover both ways.
WAY = {"light": "http", "dark": "file"}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

# Findings of axe that are serious or worse and not ours to mend, with the reason. None at present.
ACCEPTED: dict[str, str] = {}

# Without `preload`, axe fetches no stylesheet, which a page opened from disk would have to refuse.
AXE: dict[str, Any] = {"options": {"preload": False, "resultTypes": ["violations"]}}

# A chapter is thousands of elements of formulas and of coloured code, and axe weighs each for seconds. A formula
# is MathJax's own affair, and one word of each colour stands for all.
SPARE_AXE = """() => {
    for (const formula of document.querySelectorAll('mjx-container')) formula.replaceWith('formula');
    const seen = new Set();
    for (const token of document.querySelectorAll('pre span')) {
        const key = token.closest('div[class*=highlight-]')?.className + token.className;
        if (token.children.length === 0 && seen.has(key)) token.replaceWith(token.textContent);
        seen.add(key);
    }
    document.body.normalize();
}"""

SET_FORMULAS = "async () => { if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise; }"

NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

FORMULAS = """() => [...document.querySelectorAll('article .math')].map(element => ({
    source: element.textContent.slice(0, 80),
    set: element.querySelector('mjx-container') !== null,
    error: element.querySelector('mjx-merror')?.textContent ?? '',
}))"""

# What sticks out of the window, other than inside a box that scrolls and the theme's drawers off to the side.
STICKING_OUT = """() => [...document.querySelectorAll(':is(.bd-content, .bd-footer) *')].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height || (box.right <= innerWidth + 1 && box.left >= -1)) return false;
    for (let around = element.parentElement; around && around !== document.body; around = around.parentElement) {
        const style = getComputedStyle(around);
        if (/auto|scroll|hidden|clip/.test(style.overflowX) || style.position === 'fixed') return false;
    }
    return !element.closest('.bd-sidebar-secondary') && getComputedStyle(element).position !== 'fixed';
}).map(element => element.outerHTML.slice(0, 120))"""

# What scrolls sideways and can be reached by the mouse only.
UNREACHABLE = """() => [...document.querySelectorAll('article *')].filter(element =>
    /auto|scroll/.test(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth + 2
    && element.tabIndex < 0 && !element.querySelector('a[href], button, input, [tabindex="0"]')
).map(element => element.outerHTML.slice(0, 120))"""

# Contrast of a diagram's words with the shape, or else the page, behind them.
DIAGRAM_WORDS = """() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const page = getComputedStyle(document.body).backgroundColor;
    return [...document.querySelectorAll('.diagram svg.flowchart')].map(drawing => {
        const word = drawing.querySelector('text');
        const node = drawing.querySelector('.node :is(rect, circle, polygon, path)');
        const ink = getComputedStyle(word).fill;
        const arrow = getComputedStyle(drawing.querySelector('.flowchart-link')).stroke;
        return {
            name: drawing.getAttribute('aria-label'),
            words: contrast(ink, getComputedStyle(node).fill),
            arrows: contrast(arrow, page),
            size: word.getBoundingClientRect().height,
            width: drawing.getBoundingClientRect().width,
        };
    });
}"""


@dataclass
class Visit:
    """What was seen on a page in one theme."""

    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    formulas: list[dict[str, Any]] = field(default_factory=list)
    diagrams: list[dict[str, Any]] = field(default_factory=list)
    sticking_out: dict[str, list[str]] = field(default_factory=dict)
    unreachable: list[str] = field(default_factory=list)
    theme: str = ""
    paper: list[tuple[int, ...]] = field(default_factory=list)
    page_colour: tuple[int, ...] = ()


def open_page(browser: Any, base: str, theme: str) -> tuple[Any, Visit]:
    """A page of a fresh visitor, which notes every complaint and lets no request leave."""
    visit = Visit()
    context = browser.new_context(viewport=DESKTOP, color_scheme=theme)
    page = context.new_page()

    def guard(route: Any) -> None:
        if route.request.url.startswith((base, "data:", "blob:")):
            route.continue_()
        else:
            visit.outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page.on("console", lambda m: visit.complaints.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("requestfailed", lambda request: visit.complaints.append(f"not loaded: {request.url}"))
    page.on(
        "response",
        lambda answer: visit.complaints.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None,
    )
    return page, visit


def look(browser: Any, base: str, name: str, theme: str) -> Visit:
    """Open one page, and note what the tests ask about."""
    from axe_playwright_python.sync_playwright import Axe

    page, visit = open_page(browser, base, theme)
    page.goto(f"{base}/{name}.html", wait_until="load")
    page.add_style_tag(content="* { animation: none !important; transition: none !important }")
    page.evaluate(SET_FORMULAS)
    visit.theme = page.evaluate("document.documentElement.dataset.theme")
    visit.formulas = page.evaluate(FORMULAS)
    visit.diagrams = page.evaluate(DIAGRAM_WORDS)
    figure = page.locator("article figure img:visible, article .cell_output img:visible").first
    if figure.count():
        visit.paper, visit.page_colour = corners(page, figure)
    visit.sticking_out["desktop"] = page.evaluate(STICKING_OUT)
    page.set_viewport_size(PHONE)
    page.evaluate(NEXT_FRAME)
    visit.sticking_out["phone"] = page.evaluate(STICKING_OUT)
    visit.unreachable = page.evaluate(UNREACHABLE)
    page.set_viewport_size(DESKTOP)
    page.evaluate(NEXT_FRAME)
    page.evaluate(SPARE_AXE)
    for violation in Axe().run(page, **AXE).response["violations"]:
        if violation["impact"] in {"serious", "critical"} and violation["id"] not in ACCEPTED:
            where = [node["html"][:120] for node in violation["nodes"][:3]]
            visit.violations.append(f"{violation['id']}: {violation['help']}: {where}")
    page.context.close()
    return visit


def corners(page: Any, figure: Any) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The colours near a figure's corners, as they are on the screen, and the page's own."""
    figure.scroll_into_view_if_needed()
    shot = Image.open(io.BytesIO(figure.screenshot())).convert("RGB")
    width, height = shot.size
    points = [(3, 3), (width - 4, 3), (3, height - 4), (width - 4, height - 4)]
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    numbers = tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return [tuple(shot.getpixel(point)) for point in points], numbers


@pytest.fixture(scope="session")
def visits(browser: Any, site: Site, server: str) -> Any:
    """`visits(page, theme)`: each page is opened once a theme, when the first test asks."""

    @functools.cache
    def visit(name: str, theme: str) -> Visit:
        return look(browser, site.address(server, WAY[theme]), name, theme)

    return visit


each_page = pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
each_theme = pytest.mark.parametrize("theme", ["light", "dark"])


@each_page
@each_theme
def test_nothing_is_requested_from_another_host(visits: Any, page: str, theme: str) -> None:
    assert visits(page, theme).outside == []


@each_page
@each_theme
def test_nothing_complains(visits: Any, page: str, theme: str) -> None:
    assert visits(page, theme).complaints == []


@each_page
@each_theme
def test_accessible(visits: Any, page: str, theme: str) -> None:
    assert visits(page, theme).violations == []


@each_page
@each_theme
def test_follows_the_system_theme(visits: Any, page: str, theme: str) -> None:
    assert visits(page, theme).theme == theme


@each_page
@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_nothing_sticks_out_of_the_window(visits: Any, page: str, width: str) -> None:
    assert visits(page, "light").sticking_out[width] == []


@each_page
def test_what_scrolls_on_a_phone_can_be_scrolled_by_keyboard(visits: Any, page: str) -> None:
    assert visits(page, "light").unreachable == []


@pytest.mark.parametrize("page", PAGES)
@each_theme
def test_formulas_are_set(visits: Any, page: str, theme: str) -> None:
    formulas = visits(page, theme).formulas
    assert [formula for formula in formulas if not formula["set"] or formula["error"]] == []
    if "$$" in markdown_of(page):
        assert formulas


@pytest.mark.parametrize("page", [page for page in PAGES if "```mermaid" in markdown_of(page)])
@each_theme
def test_diagrams_can_be_read(visits: Any, page: str, theme: str) -> None:
    diagrams = visits(page, theme).diagrams
    assert diagrams
    for diagram in diagrams:
        assert diagram["words"] >= 4.5, diagram
        assert diagram["arrows"] >= 3, diagram
        assert diagram["size"] >= 10, diagram
        assert diagram["width"] >= 100, diagram


@pytest.mark.parametrize("page", [page for page in PAGES if "**Figure.**" in markdown_of(page)])
@each_theme
def test_figures_stand_on_the_page_itself(visits: Any, page: str, theme: str) -> None:
    visit = visits(page, theme)
    assert visit.paper
    for colour in visit.paper:
        distance = max(abs(a - b) for a, b in zip(colour, visit.page_colour, strict=True))
        assert distance <= 6, f"the figure's paper is {colour}, the page is {visit.page_colour}"


@pytest.mark.parametrize("way", ["http", "file"])
def test_search_finds_a_word(browser: Any, site: Site, server: str, way: str) -> None:
    base = site.address(server, way)
    page, visit = open_page(browser, base, "light")
    page.goto(f"{base}/search.html?q=softmax")
    page.wait_for_selector("#search-results ul.search li a", timeout=15_000)
    found = page.locator("#search-results ul.search li a").evaluate_all("links => links.map(link => link.href)")
    assert any("/chapters/" in link for link in found), found
    page.locator("#search-results ul.search li a").first.click()
    page.wait_for_selector("article.bd-article h1")
    assert visit.outside == []
    assert visit.complaints == []
    page.context.close()


@pytest.mark.parametrize("way", ["http", "file"])
def test_search_box_leads_to_the_results(browser: Any, site: Site, server: str, way: str) -> None:
    base = site.address(server, way)
    page, visit = open_page(browser, base, "light")
    page.goto(f"{base}/{PAGES[0]}.html")
    page.keyboard.press("Control+k")
    page.locator("input[type=search]:visible").first.fill("perplexity")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a", timeout=15_000)
    assert visit.outside == []
    page.context.close()


@pytest.mark.parametrize("way", ["http", "file"])
def test_front_door_leads_to_the_first_page(browser: Any, site: Site, server: str, way: str) -> None:
    base = site.address(server, way)
    page, visit = open_page(browser, base, "light")
    page.goto(f"{base}/index.html")
    page.wait_for_url(f"**/{PAGES[0]}.html", timeout=15_000)
    assert visit.outside == []
    page.context.close()


def test_the_guard_sees_a_request_that_leaves(browser: Any, site: Site, server: str) -> None:
    """The test of the tests: a page that does fetch something is caught."""
    page, visit = open_page(browser, server, "light")
    page.goto(f"{server}/{PAGES[0]}.html")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.org/spy.png'}))")
    page.wait_for_timeout(300)
    assert visit.outside == ["https://example.org/spy.png"]
    assert visit.complaints
    page.context.close()


def test_axe_sees_a_violation(browser: Any, site: Site, server: str) -> None:
    """The test of the tests: an image without alt text is serious to axe."""
    from axe_playwright_python.sync_playwright import Axe

    page, _ = open_page(browser, server, "light")
    page.goto(f"{server}/{PAGES[0]}.html")
    page.evaluate(
        "document.querySelector('article').append(Object.assign(new Image(), {src: '../_static/favicon.svg'}))"
    )
    found = {violation["id"] for violation in Axe().run(page, **AXE).response["violations"]}
    assert "image-alt" in found
    page.context.close()
