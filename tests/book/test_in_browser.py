"""The built book in headless Chromium: one visit a page, which sees everything in both themes and at two widths.

What takes long, axe, looks at one specimen of each construct; with the marker `full` (`make test-all`) at every page.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from bookkit import PAGES, Site, constructs, markdown_of, specimens
from PIL import Image

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

# Findings of axe that are serious or worse and not ours to mend, with the reason. None at present.
ACCEPTED: dict[str, str] = {}

# Without `preload`, axe fetches no stylesheet, which a page opened from disk would have to refuse.
AXE: dict[str, Any] = {"preload": False, "resultTypes": ["violations"]}
# What of a page depends on the theme.
COLOURS: dict[str, Any] = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}

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

# Contrast is what axe takes longest over. Words that look alike, on the same ground, have the same: it weighs three of
# each look (the first might lie half behind something), and its other rules see all there is.
THREE_OF_EACH_LOOK = """;(() => {
    const grounds = new Map([[null, '']]), seen = {};
    for (const element of [document.documentElement, ...document.querySelectorAll('body, body *')]) {
        const style = getComputedStyle(element);
        let ground = grounds.get(element.parentElement);
        if (!/^rgba.*, 0\\)$/.test(style.backgroundColor)) ground += '|' + style.backgroundColor;
        if (style.backgroundImage !== 'none') ground += '|' + style.backgroundImage;
        if (style.opacity !== '1' || style.filter !== 'none') ground += '|' + style.opacity + style.filter;
        if (!/static|relative/.test(style.position)) ground += '|' + style.position + element.getAttribute('class');
        grounds.set(element, ground);
        element.removeAttribute('data-weighed');
        const words = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!words && !element.matches('input, select, textarea, button')) continue;
        if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const look = [style.color, style.fill, style.fontSize, style.fontWeight, style.textShadow, ground].join();
        seen[look] = (seen[look] ?? 0) + 1;
        if (seen[look] <= 3) element.setAttribute('data-weighed', '');
    }
    axe.configure({rules: [{id: 'color-contrast', selector: '[data-weighed]'}]});
})()"""

SET_FORMULAS = "async () => { if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise; }"

NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

FORMULAS = """() => [...document.querySelectorAll('article .math')].map(element => ({
    source: element.textContent.slice(0, 80),
    set: element.querySelector('mjx-container') !== null,
    error: element.querySelector('mjx-merror')?.textContent ?? '',
}))"""

# Images that did not come, or say nothing to those who cannot see them.
IMAGES = """() => [...document.querySelectorAll('article img')].filter(image => {
    if (!image.getAttribute('alt')?.trim()) return true;
    return image.loading !== 'lazy' && !(image.complete && image.naturalWidth);
}).map(image => image.outerHTML.slice(0, 120))"""

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
    """What was seen on a page below the address `base`; `faults` is what of it ought not to be."""

    base: str
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    faults: dict[str, Any] = field(default_factory=dict)

    def note(self, kind: str, found: Any) -> None:
        """Keep what was found, if anything was."""
        if found:
            self.faults[kind] = found

    def begin(self, base: str) -> None:
        """Forget what was seen; the next page is below `base`."""
        self.base = base
        for seen in (self.outside, self.complaints, self.faults):
            seen.clear()


def open_page(browser: Any, base: str, theme: str) -> tuple[Any, Visit]:
    """A page of a fresh visitor, which notes every complaint and lets no request leave."""
    visit = Visit(base)
    context = browser.new_context(viewport=DESKTOP, color_scheme=theme)
    context.set_default_timeout(120_000)  # beside other tests, on an old machine, a long chapter takes its time
    page = context.new_page()

    def guard(route: Any) -> None:
        if route.request.url.startswith((visit.base, "data:", "blob:")):
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


@pytest.fixture(scope="module")
def visitor(browser: Any) -> Iterator[tuple[Any, Visit]]:
    """One window for many pages: a new one would read MathJax and the theme again for each, which takes seconds."""
    page, visit = open_page(browser, "", "light")
    yield page, visit
    page.context.close()


def look(visitor: tuple[Any, Visit], base: str, name: str, *, axe: bool = False) -> dict[str, Any]:
    """Open a page once, in a wide window and a narrow one, in the light theme and the dark: its faults by kind."""
    page, visit = visitor
    page.goto("about:blank")  # whatever the page before was still about is over
    visit.begin(base)
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    page.goto(f"{base}/{name}.html", wait_until="load")
    page.add_style_tag(content="* { animation: none !important; transition: none !important }")
    page.evaluate(SET_FORMULAS)
    formulas = page.evaluate(FORMULAS)
    visit.note("formulas that are not set", [f for f in formulas if not f["set"] or f["error"]])
    visit.note("no formula, though the source has one", "$$" in markdown_of(name) and not formulas)
    visit.note("images", page.evaluate(IMAGES))
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.evaluate(NEXT_FRAME)
        look_at_theme(page, visit, name, theme)
    visit.note("sticks out", page.evaluate(STICKING_OUT))
    page.set_viewport_size(PHONE)
    page.evaluate(NEXT_FRAME)
    visit.note("sticks out on a phone", page.evaluate(STICKING_OUT))
    visit.note("scrolls on a phone, but not by keyboard", page.evaluate(UNREACHABLE))
    if axe:
        page.set_viewport_size(DESKTOP)
        page.evaluate(SPARE_AXE)
        for theme, rules in (("dark", COLOURS), ("light", {})):
            page.emulate_media(color_scheme=theme)
            page.evaluate(NEXT_FRAME)
            visit.note(f"axe, {theme}", violations(page, **rules))
    visit.note("requested from another host", visit.outside)
    visit.note("complaints", visit.complaints)
    page.evaluate("localStorage.clear()")  # the next page's visitor is a new one too
    return visit.faults


def look_at_theme(page: Any, visit: Visit, name: str, theme: str) -> None:
    """What depends on the theme and needs no axe: its name, diagrams, the paper of figures."""
    shown = page.evaluate("document.documentElement.dataset.theme")
    visit.note(f"{theme}: the page does not follow the system's theme", shown != theme and shown)
    diagrams = page.evaluate(DIAGRAM_WORDS)
    least = {"words": 4.5, "arrows": 3, "size": 10, "width": 100}
    weak = [diagram for diagram in diagrams if any(diagram[what] < bound for what, bound in least.items())]
    visit.note(f"{theme}: diagrams that are hard to read", weak)
    visit.note(f"{theme}: no diagram", "```mermaid" in markdown_of(name) and not diagrams)
    figure = page.locator("article figure img:visible, article .cell_output img:visible").first
    if figure.count():
        paper, around = corners(page, figure)
        strange = [c for c in paper if max(abs(x - y) for x, y in zip(c, around, strict=True)) > 6]
        visit.note(f"{theme}: the paper of figures is not the page's {around}", strange)
    else:
        visit.note(f"{theme}: no figure", "**Figure.**" in markdown_of(name))


def violations(page: Any, **options: Any) -> list[str]:
    """What axe finds on an open page that is serious or worse."""
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(Axe().axe_script + THREE_OF_EACH_LOOK), []
    for violation in axe.run(page, options={**AXE, **options}).response["violations"]:
        if violation["impact"] in {"serious", "critical"} and violation["id"] not in ACCEPTED:
            where = [node["html"][:120] for node in violation["nodes"][:3]]
            found.append(f"{violation['id']}: {violation['help']}: {where}")
    return found


def corners(page: Any, figure: Any) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The colours near a figure's corners, as they are on the screen, and the page's own."""
    figure.scroll_into_view_if_needed()
    shot = Image.open(io.BytesIO(figure.screenshot())).convert("RGB")
    width, height = shot.size
    points = [(3, 3), (width - 4, 3), (3, height - 4), (width - 4, height - 4)]
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    numbers = tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    pixels: Any = shot.load()
    return [pixels[point] for point in points], numbers


EVERY = [*PAGES, "search", "genindex"]
SPECIMENS = [*specimens(PAGES), "search"]


def test_every_construct_has_a_specimen() -> None:
    """Pages of the book, few of them, on which everything stands that stands on any."""
    every = set().union(*map(constructs, PAGES))
    assert set().union(*map(constructs, SPECIMENS)) == every
    assert {"$$", "table", "figure", "note", "hide-input", "parameters", "interactive dk"} <= every
    assert len(SPECIMENS) <= 20


@pytest.mark.parametrize("page", EVERY)
def test_page(visitor: tuple[Any, Visit], site: Site, page: str) -> None:
    """Every page, opened from disk, where a browser allows least; one page with each construct goes before axe."""
    assert look(visitor, site.html.as_uri(), page, axe=page in SPECIMENS) == {}


def test_page_over_http(visitor: tuple[Any, Visit], site: Site, server: str) -> None:
    """The page that has most to show, as it is published."""
    assert look(visitor, server, SPECIMENS[0]) == {}


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in EVERY if page not in SPECIMENS])
def test_page_is_accessible(visitor: tuple[Any, Visit], site: Site, server: str, page: str) -> None:
    """The other pages before axe, over http."""
    assert look(visitor, server, page, axe=True) == {}


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
    """The test of the tests: an image without alt text is serious to axe, and so are words that are hard to see."""
    page, _ = open_page(browser, server, "light")
    page.goto(f"{server}/{PAGES[0]}.html")
    page.evaluate(
        "document.querySelector('article').append(Object.assign(new Image(), {src: '../_static/favicon.svg'}))"
    )
    assert any(found.startswith("image-alt: ") for found in violations(page))
    assert len(page.evaluate(IMAGES)) == 1
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    page.evaluate("Promise.all(document.getAnimations().map(change => change.finished))")
    assert violations(page, **COLOURS) == []
    page.evaluate("document.querySelector('article p').style.color = '#333'")
    assert any(found.startswith("color-contrast: ") for found in violations(page, **COLOURS))
    page.context.close()
