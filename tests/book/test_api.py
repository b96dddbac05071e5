"""The package's reference: docstrings keep their words, imports are found, pages and chapters lead to each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from bookext.api import floors
from bookext.docstrings import restructured
from bookext.usage import Package, read_notebook, read_notebooks
from bookkit import API, ROOT, Site, notebook
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import roles
from sphinx.ext.napoleon import Config, GoogleDocstring

PACKAGE = Package(ROOT)
SECTIONS = re.compile(r"^ *(?:Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
MODULES = [module for module in PACKAGE.modules if module != "llm_core"]


@pytest.fixture(autouse=True)
def _sphinx_role():
    """Outside Sphinx docutils does not know its role for Python objects."""
    roles.register_generic_role("py:obj", nodes.literal)


def read(lines: list[str]) -> nodes.document:
    """What docutils makes of a docstring. It reports in the document what it does not understand."""
    return publish_doctree("\n".join(lines), settings_overrides={"report_level": 2, "warning_stream": False})


def words(text: str) -> str:
    """A text without the marks that a page does not show: of code, of literal blocks and of lists."""
    text = re.sub(r"^ *(?:[-*]|\d+\.) ", "", text, flags=re.MULTILINE)
    return "".join(text.replace("`", "").split())


def docstrings() -> list[tuple[str, str]]:
    found = []
    for module in PACKAGE.modules:
        for node in ast.walk(PACKAGE.tree(module)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.append((f"{module}:{getattr(node, 'name', '')}", text))
    return found


def test_every_docstring_keeps_its_words() -> None:
    """docutils reads each without a complaint, and what it reads is what was written."""
    all_of_them = docstrings()
    assert len(all_of_them) > 500
    for name, text in all_of_them:
        lines = restructured(text.split("\n"))
        document = read(GoogleDocstring(lines, Config(napoleon_use_ivar=True)).lines())
        messages = list(document.findall(nodes.system_message))
        complaints = [message.astext() for message in messages if "No role entry" not in message.astext()]
        assert not complaints, (name, complaints)
        for message in messages:  # of the role above; they stand in the document as its text does
            message.parent.remove(message)
        if not SECTIONS.search(text):  # of those napoleon makes lists of fields
            assert words(document.astext()) == words(text), name


def test_blocks_keep_their_lines_and_code_is_code() -> None:
    document = read(
        restructured(
            [
                "A *star*, a |bar|, a_ and `code *b*` and `mean`s.",
                "",
                "    x = 1   two",
                "        y_  |three|",
                "",
                "So:",
                "- one `a",
                "  b`",
                "- two",
                "",
                "Source: Elman 1990.",
                "",
                ">>> f('*')",
                "'`'",
            ]
        )
    )
    assert [node.astext() for node in document.findall(nodes.literal)] == ["code *b*", "mean", "a\nb"]
    assert [node.astext() for node in document.findall(nodes.literal_block)] == ["x = 1   two\n    y_  |three|"]
    assert [node.astext() for node in document.findall(nodes.list_item)] == ["one a\nb", "two"]
    assert [node.astext() for node in document.findall(nodes.strong)] == ["Source:"]
    assert [node.astext() for node in document.findall(nodes.doctest_block)] == [">>> f('*')\n'`'"]
    assert not list(document.findall(nodes.emphasis))
    assert document[0].astext() == "A *star*, a |bar|, a_ and code *b* and means."


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package whose top names come from below, one of them under the name of a module."""
    files = {
        "llm_core/__init__.py": '"""All."""',
        "llm_core/_private.py": '"""None of it."""',
        "llm_core/figures/__init__.py": '"""F."""\nfrom llm_core.figures.shown import show\n'
        "from llm_core.figures.table import table\n",
        "llm_core/figures/shown.py": '"""S, in\ntwo lines."""\ndef show(): ...\n',
        "llm_core/figures/table.py": '"""T."""\ndef table(): ...\n',
        "llm_core/exercises/__init__.py": '"""E."""',
        "llm_core/exercises/s03_a/__init__.py": '"""No part of the reference."""',
        "llm_core/exercises/s03_a/solution.py": '"""Least of all this."""',
        "llm_core/layers.py": '"""L."""\ndef attention(): ...\n',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_modules_are_found_without_importing_them(small: Path) -> None:
    package = Package(small)
    assert list(package.modules) == [
        "llm_core", "llm_core.exercises", "llm_core.figures", "llm_core.figures.shown", "llm_core.figures.table",
        "llm_core.layers",
    ]  # fmt: skip
    assert package.summary("llm_core.figures.shown") == "S, in"


def test_a_notebooks_imports_are_where_the_names_are_defined(small: Path) -> None:
    cells = [
        "%matplotlib inline\nfrom llm_core.figures import show, table as t\nimport torch",
        "def f():\n    import llm_core.layers as layers\n    from llm_core.layers import attention",
        "from llm_core.figures import shown",
        "this is no Python",
    ]
    made = notebook("Text first.", "# The title\n\nfrom llm_core.layers import nothing")
    made.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path = small / "chapters/03_a/exercises/01_b.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(made, path)
    found = read_notebook(path, small, Package(small))
    assert found.imports == {
        "llm_core.figures.shown": ("show",),
        "llm_core.figures.table": ("table",),
        "llm_core.layers": ("attention",),
    }
    assert (found.docname, found.title, found.label) == ("chapters/03_a/exercises/01_b", "The title", "The title")
    assert found.kind == "exercise"


def test_chapters_come_first_and_have_their_numbers() -> None:
    notebooks = read_notebooks(ROOT, PACKAGE)
    kinds = [book.kind for book in notebooks]
    assert kinds == sorted(kinds)
    assert set(kinds) == {"chapter", "exercise", "study"}
    assert notebooks[0].label == "1.1 From rules to language models"
    (attention,) = [book for book in notebooks if book.label == "3.1 Self-attention"]
    assert "MultiHeadAttention" in attention.imports["llm_core.layers.attention"]
    unknown = {module for book in notebooks for module in book.imports} - set(PACKAGE.modules)
    assert not unknown, "a notebook imports what is not there"


def test_no_docstring_promises_a_chapter() -> None:
    """Which notebook uses a module is read off the imports; a promise kept by hand would go out of date."""
    promise = re.compile(r"\b(?:taught|once (?:it is|they are) written)\b.*?\b\d\d_[a-z]+", re.IGNORECASE | re.DOTALL)
    assert not [name for name, text in docstrings() if promise.search(text)]


# --- the built pages -------------------------------------------------------------------------------------------------


def test_every_module_is_on_its_folders_page_and_stands_on_its_floor(site: Site) -> None:
    pages = {page for page in site.soups if page.startswith(API)}
    places = {module: module.split(".")[1] for module in MODULES}
    assert pages == {f"{API}index"} | {API + folder for folder in places.values()}
    index = site.article(f"{API}index")
    linked = {link["href"] for link in index.select("a.internal[href]")}
    for module, folder in places.items():
        inner = module.count(".") == 2
        assert f"{folder}.html" + (f"#module-{module}" if inner else "") in linked
        assert site.article(f"{API}{folder}").find(id=f"module-{module}"), module
    assert len(index.select("h2")) == len(floors(ROOT))


def test_a_page_shows_shapes_errors_formulas_and_sources(site: Site) -> None:
    article = site.article(f"{API}layers").select_one("section#attention")
    text = " ".join(article.get_text().split())
    assert "query: Float[Tensor, '*batch T E']" in text
    assert "output = weights @ value the weighted mean" in text
    assert article.select_one("dl.field-list strong", string="query") is not None
    assert "ValueError" in text
    assert "Source: Vaswani et al. 2017, section 3.2.1, equation 1." in text
    assert ":py:obj:" not in text
    assert "`" not in text
    # Of another module, by its short name alone.
    decoder = site.article(f"{API}models").select_one("section#gpt")
    assert decoder.select_one("a[href='layers.html#llm_core.layers.cache.Cache']") is not None


def test_pages_and_chapters_lead_to_each_other(site: Site) -> None:
    chapter = "chapters/03_algorithms/01_self_attention"
    link = site.article(f"{API}layers").select_one(f"section#attention a[href='../../{chapter}.html']")
    assert link.get_text() == "3.1 Self-attention"
    box = site.article(chapter).select_one(".from-the-package")
    addresses = [link["href"] for link in box.select("a")]
    assert "../../book/api/layers.html#llm_core.layers.attention.MultiHeadAttention" in addresses
    assert "../../book/api/layers.html#module-llm_core.layers.attention" in addresses
    for address in addresses:
        page, anchor = address.removeprefix("../../").split(".html#")
        assert site.soups[page].find(id=anchor), address


def test_a_page_that_the_build_makes_offers_no_edit(site: Site) -> None:
    links = [link["href"] for link in site.soups[f"{API}layers"].select(".article-header-buttons a[href]")]
    assert links
    assert not any("/edit/" in link for link in links)
