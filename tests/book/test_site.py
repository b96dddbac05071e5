"""The built book, read as files: nothing here needs a browser."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bookkit import API, BOOK_URL, CHAPTERS, NOTEBOOKS, PAGES, REPOSITORY, ROOT, Site, markdown_of

# Where a stock Jupyter Book fetches its scripts. No page may name them at all.
CDN = re.compile(r"unpkg\.com|jsdelivr|cdnjs|googleapis|gstatic|thebe|plausible\.io|require(?:\.min)?\.js", re.I)


def test_build_is_clean(site: Site) -> None:
    assert site.status == 0, site.log[-4000:]
    assert "WARNING" not in site.log, site.log[-4000:]


def test_every_page_is_there_and_no_other(site: Site) -> None:
    written = {page for page in site.soups if not page.startswith(API)}
    assert written == {*PAGES, "index", "search", "genindex"}


def test_every_source_is_in_the_table_of_contents() -> None:
    sources = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for folder in ("book", "chapters")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".md", ".ipynb"}
        and not any(part.startswith(("_", ".")) for part in path.relative_to(ROOT).parts)
        and not path.is_relative_to(ROOT / API)
    }
    assert sources == set(PAGES)


def test_no_page_names_a_script_of_another_host(site: Site) -> None:
    named = {page: CDN.findall((site.html / f"{page}.html").read_text(encoding="utf-8")) for page in site.soups}
    # A page may link to such a host for reading; nothing may be loaded from one.
    assert {page: found for page, found in named.items() if found} == {}


@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_everything_loaded_is_local_and_there(site: Site, page: str) -> None:
    soup = site.soups[page]
    loaded = [tag["src"] for tag in soup.select("script[src], img[src], iframe[src], source[src]")]
    loaded += [tag["href"] for tag in soup.select("link[href]") if "canonical" not in tag.get("rel", ())]
    assert loaded
    missing = []
    for address in loaded:
        parts = urlsplit(address)
        file = (site.html / page).parent / unquote(parts.path)
        if parts.scheme or parts.netloc or not file.exists():
            # Links rel=next, prev, index, search lead to pages, with or without an anchor.
            missing.append(address)
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_every_link_leads_somewhere(site: Site, page: str) -> None:
    broken = []
    for link in site.soups[page].select("a[href]"):
        href = link["href"]
        parts = urlsplit(href)
        if parts.scheme in {"http", "https", "mailto"}:
            continue
        target = ((site.html / page).parent / unquote(parts.path)).resolve() if parts.path else None
        name = target.relative_to(site.html.resolve()).as_posix().removesuffix(".html") if target else page
        exists = name in site.soups if target is None or target.suffix == ".html" else target.is_file()
        wanted = unquote(parts.fragment)
        if parts.scheme or not exists or (name in site.soups and wanted not in site.anchors(name)):
            broken.append(href)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_every_image_says_what_it_shows(site: Site, page: str) -> None:
    article = site.article(page)
    silent = [str(image)[:100] for image in article.select("img") if not image.get("alt", "").strip()]
    silent += [str(drawing)[:100] for drawing in article.select(".diagram svg") if not drawing.get("aria-label")]
    assert silent == []


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_every_caption_belongs_to_a_numbered_figure(site: Site, page: str) -> None:
    captions = len(re.findall(r"^\*\*Figure\.\*\*", markdown_of(page), re.MULTILINE))
    numbers = [tag.get_text().strip() for tag in site.article(page).select("figure > figcaption .caption-number")]
    chapter = re.fullmatch(r"chapters/(\d+)_\w+/(\d+)_\w+", page)
    if chapter:
        prefix = f"{int(chapter[1])}.{int(chapter[2])}."
        assert numbers == [f"Figure {prefix}{count}" for count in range(1, captions + 1)]
    assert len(numbers) == captions
    assert not site.article(page).find("strong", string="Figure.")


@pytest.mark.parametrize("page", PAGES)
def test_every_diagram_is_drawn(site: Site, page: str) -> None:
    fences = len(re.findall(r"^\s*[`:]{3,}\s*\{?mermaid\b", markdown_of(page), re.MULTILINE))
    drawings = site.article(page).select(".diagram > svg[role=img]")
    assert len(drawings) == fences
    identities = [drawing["id"] for drawing in drawings]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_carry_the_numbers_of_their_folders(site: Site, page: str) -> None:
    section, chapter = (int(part.split("_")[0]) for part in page.split("/")[1:])
    number = f"{section}.{chapter}."
    title = site.article(page).find("h1")
    assert title is not None
    assert title.get_text().startswith(f"{number} ")
    sections = [heading.get_text().split()[0] for heading in site.article(page).find_all("h2")]
    assert sections == [f"{number}{count}." for count in range(1, len(sections) + 1)]
    assert any(number in link.get_text() for link in site.soups["book/index"].select(".bd-sidebar-primary a"))


def test_the_book_exercises_what_is_tested() -> None:
    """The tests above count what is there; nothing to count would be nothing tested."""
    everything = "\n".join(markdown_of(page) for page in PAGES)
    for mark in ("**Figure.**", "$$", "references.md#", "corrections.md#", ":::{"):
        assert mark in everything, f"no page has {mark}"


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_buttons_follow_the_clone(site: Site, page: str) -> None:
    links = {link["href"] for link in site.soups[page].select("a[href]")}
    name = REPOSITORY.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{name}/blob/colab/{page}.ipynb" in links
    assert f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/{page}.ipynb" in links
    assert f"{REPOSITORY}/edit/main/{page}.ipynb" in links
    download = [link for link in links if link.endswith(f"{page.split('/')[-1]}.ipynb") and "_sources" in link]
    assert download, "no button that downloads the notebook"
    downloaded = ((site.html / page).parent / download[0]).resolve()
    assert json.loads(downloaded.read_text("utf-8")) == json.loads((ROOT / f"{page}.ipynb").read_text("utf-8"))


def test_pages_without_code_have_no_launch_button(site: Site) -> None:
    for page in set(PAGES) - set(NOTEBOOKS):
        links = [link["href"] for link in site.soups[page].select("a[href]")]
        assert not any("colab.research" in link or "mybinder" in link for link in links), page
        assert f"{REPOSITORY}/edit/main/{page}.md" in links


def test_no_other_repository_is_named(site: Site) -> None:
    for page, soup in site.soups.items():
        for link in soup.select(".article-header-buttons a[href]"):
            if "github" in link["href"]:
                assert "example/llm-book" in link["href"], (page, link["href"])


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_colab_copy_is_plain_markdown(site: Site, page: str) -> None:
    from bookext.markdown import leftovers

    copy = nbformat.read(site.html / f"colab/{page}.ipynb", as_version=4)
    nbformat.validate(copy)
    original = nbformat.read(ROOT / f"{page}.ipynb", as_version=4)
    assert [cell.source for cell in copy.cells[1:] if cell.cell_type == "code"] == [
        cell.source for cell in original.cells if cell.cell_type == "code"
    ]
    first = copy.cells[0]
    assert first.cell_type == "code"
    assert f"git+{REPOSITORY}@main" in first.source
    assert "--constraint" in first.source
    texts = [cell.source for cell in copy.cells if cell.cell_type == "markdown"]
    texts += [
        "".join(o.data["text/markdown"])
        for c in copy.cells
        for o in c.get("outputs", ())
        if "data" in o and "text/markdown" in o.data
    ]
    for text in texts:
        assert leftovers(text) == []
        prose = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            assert re.match(r"https?://|data:image/png;base64,|#", target), f"{target} leads nowhere from Colab"
    if "```mermaid" in markdown_of(page):
        assert any("data:image/png;base64," in text for text in texts)


def test_colab_copies_link_to_the_published_book(site: Site) -> None:
    linked = [
        link
        for page in CHAPTERS
        for cell in nbformat.read(site.html / f"colab/{page}.ipynb", as_version=4).cells
        if cell.cell_type == "markdown"
        for link in re.findall(rf"\({re.escape(BOOK_URL)}/([^)\s]+)\)", cell.source)
    ]
    assert linked
    for link in linked:
        path, _, anchor = link.partition("#")
        name = path.removesuffix(".html")
        assert name in site.soups, link
        assert anchor in site.anchors(name), link


def test_no_third_party_script_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.js", "*.css", "*.mjs"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    ours = ["book.css", "book.js", "interactive.css", "interactive.js"]
    figures = ["alignment", "attention", "dk", "ngram", "pipeline", "rope", "sampling", "tokenizer"]
    ours += [f"interactive/{name}.js" for name in figures]
    assert {Path(name) for name in listed.stdout.split()} <= {Path("book/_static", name) for name in ours}


def test_mathjax_is_there_with_its_fonts_and_extensions(site: Site) -> None:
    folder = site.html / "_static/mathjax"
    assert (folder / "tex-chtml.js").is_file()
    assert len(list((folder / "output/chtml/fonts/woff-v2").glob("*.woff"))) > 20
    assert (folder / "input/tex/extensions/boldsymbol.js").is_file()
