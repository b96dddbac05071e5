"""What the tests of the built book share: its pages, how it is built, how one of its pages is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from filelock import FileLock

from llm_core.figures import tables

ROOT = Path(__file__).resolve().parents[2]
# Building the whole book may take so long, on a slow and busy machine.
BUILD_SECONDS = 900
LAUNCH = "from jupyter_book.cli.main import main; main()"

# The clone that the tests pretend to be in, so that launch buttons can be looked at.
REPOSITORY = "https://github.com/example/llm-book"
BOOK_URL = "https://example.github.io/llm-book"


# The reference of the package: its pages are made by the build, and tests/book/test_api.py looks at them.
API = "book/api/"


def contents(root: Path = ROOT) -> list[str]:
    """Every page of the table of contents that somebody wrote, in order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages = [toc["root"]]

    def add(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if not entry["file"].startswith(API):
                pages.append(entry["file"])
                add(entry.get("sections", []))

    for part in toc["parts"]:
        add(part["chapters"])
    return pages


PAGES = contents()
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()]
CHAPTERS = [page for page in NOTEBOOKS if "/exercises/" not in page and "/studies/" not in page]


@cache
def markdown_of(page: str) -> str:
    """All Markdown in a page's source: the file itself, or a notebook's cells and Markdown outputs."""
    if (ROOT / f"{page}.md").is_file():
        return (ROOT / f"{page}.md").read_text(encoding="utf-8")
    if not (ROOT / f"{page}.ipynb").is_file():
        return ""  # the build says what is missing; collecting the tests should not fail for it
    texts = []
    for cell in nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            texts.append(cell.source)
        for output in cell.get("outputs", ()):
            texts.append("".join(output.get("data", {}).get("text/markdown", "")))
    return "\n\n".join(texts)


def constructs(page: str) -> set[str]:
    """What a page is made of: directives, roles, tables, formulas, cells' tags, kinds of outputs."""
    text = markdown_of(page)
    found = set(re.findall(r"^\s*(?:`{3,}|:{3,})\{?([a-z][\w:-]*)\}?", text, re.MULTILINE))
    found |= set(re.findall(r"\{([a-z][\w:-]*)\}`", text))
    marks = {"$$": r"\$\$", "table": r"^\|[ :-]+\|", "figure": r"^\*\*Figure\.\*\*", "image": r"!\[", "HTML": r"^<\w"}
    found |= {name for name, mark in marks.items() if re.search(mark, text, re.MULTILINE)}
    if (ROOT / f"{page}.ipynb").is_file():
        for cell in nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells:
            found |= {cell.cell_type, *cell.metadata.get("tags", [])}
            for output in cell.get("outputs", ()):
                found |= {output.output_type, *output.get("data", ())}
                if INTERACTIVE in output.get("data", ()):
                    found.add(f"interactive {output.data[INTERACTIVE]['kind']}")
    return found


def specimens(pages: list[str]) -> list[str]:
    """Few of the pages, which have every construct between them: each time the one that has most that is new."""
    wanted = {page: constructs(page) for page in pages}
    chosen: list[str] = []
    missing = set().union(*wanted.values())
    while missing:
        chosen.append(max(pages, key=lambda page: len(wanted[page] & missing)))
        missing -= wanted[chosen[-1]]
    return chosen


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], tuple[int, str]]) -> Site:
    """A book that one of the test processes builds with `build(folder)`, and all of them share."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        done = folder / "done.json"
        if not done.is_file():
            folder.mkdir()
            status, log = build(folder)
            done.write_text(json.dumps([status, log]), encoding="utf-8")
    status, log = json.loads(done.read_text(encoding="utf-8"))
    return Site(folder / "out/_build/html", status, log)


def build_book(source: Path, out: Path, **environment: str) -> tuple[int, str]:
    """Build a book from nothing, as `make book` does. Returns the exit status and what was printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BOOK_", "GITHUB_"))}
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH, "build", ".", "--path-output", str(out), "-W", "-n", "--keep-going", "-q"],
        cwd=source,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
    )
    return result.returncode, re.sub(r"\x1b\[[\d;]*m", "", result.stdout)


class Soups(Mapping[str, BeautifulSoup]):
    """HTML files of a folder, each parsed when it is first asked for."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.parsed = folder, names, dict[str, BeautifulSoup]()

    def __getitem__(self, name: str) -> BeautifulSoup:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.parsed:
            text = (self.folder / f"{name}.html").read_text(encoding="utf-8")
            self.parsed[name] = BeautifulSoup(text, "lxml")
        return self.parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Site:
    """A built book."""

    html: Path
    status: int
    log: str

    @cached_property
    def soups(self) -> Soups:
        """Every HTML file of the site by its name without `.html`."""
        paths = sorted(self.html.rglob("*.html"))
        names = [path.relative_to(self.html) for path in paths]
        return Soups(
            self.html, [name.as_posix().removesuffix(".html") for name in names if "_static" not in name.parts]
        )

    @cached_property
    def _anchors(self) -> dict[str, set[str]]:
        return {}

    def anchors(self, page: str) -> set[str]:
        """Every place on a page that a link can lead to."""
        if page not in self._anchors:
            soup = self.soups[page]
            names = {tag["id"] for tag in soup.find_all(id=True)} | {
                tag["name"] for tag in soup.find_all("a", attrs={"name": True})
            }
            self._anchors[page] = names | {""}
        return self._anchors[page]

    def address(self, server: str, way: str) -> str:
        """The site's base address when it is served ("http") or opened from disk ("file")."""
        return server if way == "http" else self.html.as_uri()

    def article(self, page: str) -> Tag:
        """A page's own text, without the theme around it."""
        article = self.soups[page].select_one("article.bd-article")
        assert article is not None, f"{page} has no article"
        return article


def small_book(folder: Path, pages: dict[str, Any]) -> Path:
    """A tiny book in `folder` with the real settings and extension; `pages` maps paths to text or notebooks."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    settings["exclude_patterns"] = [".*"]
    settings["html"]["favicon"] = ""
    settings["bibtex_bibfiles"] = ["references.bib"]
    settings["sphinx"]["local_extensions"] = {"bookext": str(ROOT / "book/_ext")}
    settings["sphinx"]["config"]["html_static_path"] = [str(ROOT / "book/_static")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "references.bib").write_text(BIBLIOGRAPHY, encoding="utf-8")
    pages = {"index.md": "# Title\n", "references.md": "# References\n\n```{bibliography}\n```\n", **pages}
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, str):
            path.write_text(text, encoding="utf-8")
        else:
            nbformat.write(text, path)
    chapters = [
        {"file": str(Path(name).with_suffix(""))} for name in pages if name != "index.md" and not name.endswith(".svg")
    ]
    toc = {"format": "jb-book", "root": "index", "chapters": chapters}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    return folder


BIBLIOGRAPHY = """\
@inproceedings{vaswani2017attention,
  author = {Vaswani, Ashish and Shazeer, Noam and Parmar, Niki},
  title = {Attention Is All You Need}, booktitle = {NeurIPS}, year = {2017}, eprint = {1706.03762},
}
@article{shannon1948mathematical,
  author = {Shannon, Claude E.}, title = {A Mathematical Theory of Communication},
  journal = {Bell System Technical Journal}, year = {1948}, url = {https://example.org/shannon},
}
"""

# The type of an interactive figure's data.
INTERACTIVE = "application/vnd.llm-core.interactive+json"

# One transparent pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def notebook(*cells: Any) -> nbformat.NotebookNode:
    """A notebook of Markdown cells (strings) and code cells (lists of outputs)."""
    made = [
        nbformat.v4.new_markdown_cell(cell)
        if isinstance(cell, str)
        else nbformat.v4.new_code_cell("show()", outputs=cell)
        for cell in cells
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def image(alt: str | None = "A square.", *, data: tuple[str, Any] | None = None) -> nbformat.NotebookNode:
    """The image output of `llm_core.figures.show`; `data` are the kind and the data of an interactive figure."""
    interactive = {} if data is None else {INTERACTIVE: {"kind": data[0], "data": data[1]}}
    return nbformat.v4.new_output(
        "display_data",
        {"image/png": PIXEL, "text/plain": "figure", **interactive},
        metadata={"image/png": {"alt": alt} if alt else {}},
    )


def caption(text: str) -> nbformat.NotebookNode:
    """The caption output of `llm_core.figures.show`."""
    words = f"**Figure.** {text}"
    return nbformat.v4.new_output("display_data", {"text/markdown": words, "text/plain": words})


def table(headers: list[str], rows: list[list[str]], caption: str | None = None) -> nbformat.NotebookNode:
    """The output of `llm_core.figures.table`."""
    caught: list[dict[str, Any]] = []
    with mock.patch.object(tables, "display", lambda data, raw: caught.append(data)):
        tables.table(headers, rows, caption=caption)
    return nbformat.v4.new_output("display_data", caught[0])
