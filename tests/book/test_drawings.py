"""A drawing whose parts are links, as it stands in a page."""

from __future__ import annotations

from bookext.drawings import has_links, inline
from bs4 import BeautifulSoup

DRAWING = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" class="two wide" role="img" aria-label="old">
<title>A tooltip
over two lines</title><a class="part" href="../b.md#c"><rect width="4"/></a>
<a href="d.md"><title>d</title><text>x &gt; y</text></a>
</svg>
"""


def test_it_is_named_by_its_alternative_text_and_its_links_lead_to_pages() -> None:
    asked: list[str] = []

    def address(href: str) -> str:
        asked.append(href)
        return f'page.html?a="1"&b=<{len(asked)}>'

    written = inline(DRAWING, 'An "A" & a <b>', address)
    assert written.startswith("<svg")
    assert written.endswith("</svg>")
    (drawing,) = BeautifulSoup(written, "html.parser").find_all("svg")
    assert drawing["class"] == ["drawing", "two", "wide"]
    assert (drawing["role"], drawing["aria-label"]) == ("group", 'An "A" & a <b>')
    assert written.count("aria-label=") == written.count("role=") == 1
    assert drawing["viewbox"] == "0 0 9 9"
    assert drawing.find("title") is None
    assert asked == ["../b.md#c", "d.md"]
    assert [link["href"] for link in drawing.find_all("a")] == ['page.html?a="1"&b=<1>', 'page.html?a="1"&b=<2>']
    assert drawing.find("a")["class"] == ["part"]
    assert drawing.find("text").get_text() == "x > y"


def test_a_drawing_without_a_class_gets_one() -> None:
    written = inline('<svg viewBox="0 0 1 1"><a href="x"/></svg>', "It.", str)
    assert BeautifulSoup(written, "html.parser").find("svg")["class"] == ["drawing"]


def test_what_has_links() -> None:
    assert has_links(DRAWING)
    assert not has_links('<svg><abbr href="x"/><a id="b"/><text>href="x"</text></svg>')
    assert not has_links('<svg><use href="#b"/></svg>')
