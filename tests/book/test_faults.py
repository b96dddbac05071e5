"""A fault in a page fails the build: each kind once, in tiny books that use the real settings and extension."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from bookkit import Site, build_book, built_once, caption, image, notebook, small_book, table

LINKED = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" class="two" role="img"><title>Two</title>'
    '<a href="{}"><rect width="4" height="4"/></a><a href="../index.md"><rect x="5" width="4" height="4"/></a></svg>'
)
GOOD = {
    "chapters/07_tools/02_good.ipynb": notebook(
        "# A good page\n\n(lab-el)=\n## First\n\n"
        "See [](#lab-el), [there](../../other.md#eq-other), [that](../../other.md#here).\n\n"
        "[Vaswani et al., 2017, §3](../../references.md#vaswani2017attention), {cite:t}`shannon1948mathematical`.\n\n"
        "$$\na = b\n$$ (eq-good)\n\nSee {eq}`eq-good` and [this](#eq-good).\n\n"
        ":::{tip} A title with $x$\nbody\n:::\n\n:::{note}\nbody\n:::\n\n### Deeper\n\n#### Too deep\n",
        [image(), caption("It is a square, see [other](../../other.md) and $x$."), image("Another.")],
        [table(["$d_k$", "token"], [["64", "`a|b`"], ["8", "$|x|$"]], "Which *width*?"), table(["n"], [["1"]])],
        "```mermaid\nflowchart LR\n    accTitle: Two steps\n    A --> B\n```\n\n"
        "```{mermaid}\n:alt: Two more\nflowchart LR\n    A --> B\n```",
        "![Two boxes: one, another.](../../drawings/linked.svg)",
    ),
    "drawings/linked.svg": LINKED.format("../other.md#here"),
    "other.md": "# Other\n\n(here)=\nA paragraph.\n\n$$ c = d $$ (eq-other)\n",
}


def table_caption() -> nbformat.NotebookNode:
    """The caption of a table, and something else below it."""
    words = "**Table.** Which?\n\nNone."
    return nbformat.v4.new_output("display_data", {"text/markdown": words, "text/plain": words})


# What is wrong -> the page, and what the build has to say about it.
FAULTS: dict[str, tuple[str | nbformat.NotebookNode, str]] = {
    "link to no page": ("# T\n\n[x](nowhere.md)", "nowhere.md"),
    "link to no heading": ("# T\n\n[x](index.md#nowhere)", "nowhere"),
    "link to no label": ("# T\n\n[x](#nowhere)", "nowhere"),
    "link to no work": ("# T\n\n[Nobody, 1900](references.md#nobody1900)", "nobody1900"),
    "citation of no work": ("# T\n\n{cite:p}`nobody1900`", "nobody1900"),
    "citation of another year": ("# T\n\n[Shannon, 1949](references.md#shannon1948mathematical)", "does not name"),
    "citation of another author": ("# T\n\n[Turing, 1948](references.md#shannon1948mathematical)", "does not name"),
    "no such equation": ("# T\n\n{eq}`eq-nowhere`", "eq-nowhere"),
    "no such role": ("# T\n\n{nonsense}`x`", "nonsense"),
    "no such directive": ("# T\n\n:::{nonsense}\nx\n:::", "nonsense"),
    "no alt text in Markdown": ("# T\n\n![](references.bib)", "alternative text"),
    "no alt text in an output": (notebook("# T", [image(None)]), "alternative text"),
    "caption without an image": (notebook("# T", [caption("Nothing above.")]), "does not follow an image"),
    "caption without a table": (notebook("# T", [table_caption()]), "does not stand above a table"),
    "interactive figure without a caption": (notebook("# T", [image(data=("dk", {}))]), "has no caption"),
    "no such interactive figure": (
        notebook("# T", [image(data=("nonsense", {})), caption("It.")]),
        "no interactive figure of the kind 'nonsense'",
    ),
    "interactive figure of what is no number": (
        notebook("# T", [image(data=("dk", {"scores": float("nan")})), caption("It.")]),
        "a NaN or an infinity",
    ),
    "diagram without a name": ("# T\n\n```mermaid\nflowchart LR\n  A --> B\n```", "has no name"),
    "diagram that cannot be drawn": (
        "# T\n\n```mermaid\nflowchart LR\n  accTitle: N\n  A[ --> B\n```",
        "Mermaid diagram not drawn",
    ),
    "drawing that links to no page": ("# T\n\n![A box.](drawing.svg)", "which is no page of the book"),
    "notebook that Colab cannot show": (notebook("# T\n\n{doc}`index`"), "no Colab copy"),
}


def slug(fault: str) -> str:
    """A file name for a fault; notebooks live among the chapters, as Colab copies are made of those only."""
    name = fault.replace(" ", "_")
    return f"chapters/01_x/{name}.ipynb" if not isinstance(FAULTS[fault][0], str) else f"{name}.md"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return built_once(
        tmp_path_factory, "good", lambda folder: build_book(small_book(folder / "book", GOOD), folder / "out")
    )


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """All the faults, a page each: every one has to be reported by its own page's name."""
    pages = {slug(fault): FAULTS[fault][0] for fault in FAULTS} | {"drawing.svg": LINKED.format("nowhere.md")}
    return built_once(
        tmp_path_factory, "faulty", lambda folder: build_book(small_book(folder / "book", pages), folder / "out")
    )


def test_a_good_book_builds(good: Site) -> None:
    assert good.status == 0, good.log


def test_a_faulty_book_does_not(faulty: Site) -> None:
    assert faulty.status != 0


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(faulty: Site, fault: str) -> None:
    page, words = slug(fault), FAULTS[fault][1]
    said = [
        line for line in faulty.log.splitlines() if re.search(r"WARNING|ERROR", line) and page.split(".")[0] in line
    ]
    assert any(words in line for line in said), f"{page}: {said}\n{faulty.log[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["link to no heading", "no alt text in an output"])
def test_one_fault_alone_fails_the_build(tmp_path: Path, fault: str) -> None:
    book = small_book(tmp_path / "book", {slug(fault): FAULTS[fault][0]})
    status, log = build_book(book, tmp_path / "out")
    assert status != 0
    assert log.count("WARNING") == 1, log


PAGE = "chapters/07_tools/02_good"


def test_captioned_image_is_a_numbered_figure(good: Site) -> None:
    article = good.article(PAGE)
    figure = article.select_one("figure")
    assert figure is not None
    assert figure.select_one("img")["alt"] == "A square."
    words = " ".join(figure.select_one("figcaption").get_text().split())
    assert words.startswith("Figure 7.2.1 It is a square, see other and")
    assert figure.select_one("figcaption a[href='../../other.html']") is not None
    assert len(article.select("figure")) == 1
    assert [tag["alt"] for tag in article.select("img")] == ["A square.", "Another."]


def test_a_drawing_with_links_stands_in_the_page(good: Site) -> None:
    drawing = good.article(PAGE).select_one("p > svg.drawing.two")
    assert drawing is not None
    assert (drawing["role"], drawing["aria-label"]) == ("group", "Two boxes: one, another.")
    assert [link["href"] for link in drawing.select("a")] == ["../../other.html#here", "../../index.html"]
    assert drawing.select_one("title") is None


def test_captioned_table_is_a_numbered_table(good: Site) -> None:
    captioned, plain = good.article(PAGE).select("table")
    assert captioned.select_one("caption").get_text().rstrip("#") == "Table 7.2.1 Which width?"
    assert captioned.select_one("caption em").get_text() == "width"
    assert plain.select_one("caption") is None
    cells = [[cell.get_text().strip() for cell in row.select("th, td")] for row in captioned.select("tr")]
    assert cells == [[r"\(d_k\)", "token"], ["64", "a|b"], ["8", r"\(\vert x\vert \)"]]
    assert captioned.select_one("td code").get_text() == "a|b"
    assert ["text-right" in cell["class"] for cell in captioned.select("tr:last-child td")] == [True, False]
    assert not good.article(PAGE).find("strong", string="Table.")


def test_headings_are_numbered_to_the_third_level(good: Site) -> None:
    headings = [tag.get_text().rstrip("#") for tag in good.article(PAGE).select("h1, h2, h3, h4")]
    assert headings == ["7.2. A good page", "7.2.1. First", "Deeper", "Too deep"]


def test_links_reach_labels_and_equations_of_other_pages(good: Site) -> None:
    links = {tag.get_text(): tag["href"] for tag in good.article(PAGE).select("a.internal")}
    assert links["there"] == "../../other.html#equation-eq-other"
    assert links["that"] == "../../other.html#here"
    assert links["First"] == "#lab-el"
    assert links["this"] == "#equation-eq-good"
    assert links["(1)"] == "#equation-eq-good"


def test_a_link_to_the_bibliography_counts_as_a_citation(good: Site) -> None:
    entries = [tag["id"] for tag in good.article("references").select(".citation")]
    assert entries == ["shannon1948mathematical", "vaswani2017attention"]
    labels = [tag.get_text() for tag in good.article("references").select(".citation .label")]
    assert ["Shannon, 1948" in labels[0], "Vaswani et al., 2017" in labels[1]] == [True, True]


def test_admonition_keeps_its_own_title(good: Site) -> None:
    titles = [tag.get_text() for tag in good.article(PAGE).select(".admonition-title")]
    assert titles == [r"A title with \(x\)", "Note"]
    assert good.article(PAGE).select_one(".admonition.tip") is not None


def test_diagrams_do_not_share_identifiers(good: Site) -> None:
    drawings = good.article(PAGE).select(".diagram svg")
    assert [drawing["aria-label"] for drawing in drawings] == ["Two steps", "Two more"]
    ids = [tag["id"] for drawing in drawings for tag in [drawing, *drawing.select("[id]")]]
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        for reference in re.findall(r"url\(#([^)]+)\)", str(drawing)):
            assert drawing.select_one(f"[id='{reference}']") is not None


def test_without_a_remote_there_are_no_launch_buttons(good: Site) -> None:
    links = [tag["href"] for tag in good.soups[PAGE].select("a[href]")]
    assert not [link for link in links if re.search(r"colab|binder|/edit/|/issues/", link)]
    assert "WARNING" not in good.log


def test_another_host_than_github_gets_no_buttons_either(tmp_path: Path) -> None:
    book = small_book(tmp_path / "book", {"page.ipynb": notebook("# T")})
    subprocess.run(["git", "init", "-q", "."], cwd=book, check=True)
    remote = "https://someone:secret@gitlab.com/group/book.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=book, check=True)
    status, log = build_book(book, tmp_path / "out")
    assert status == 0, log
    page = (tmp_path / "out/_build/html/page.html").read_text(encoding="utf-8")
    assert not re.search(r"colab\.research|mybinder|gitlab|secret", page)
