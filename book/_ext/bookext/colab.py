"""Copies of the notebooks for Google Colab, written beside the built book.

A copy starts with a cell that installs the book's package, and speaks plain Markdown (see `markdown`): Colab
knows no MyST. Stored outputs stay, so that a reader sees the figures before running anything.
"""

import base64
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from pybtex.database import Entry
from sphinx.application import Sphinx
from sphinx.util import logging

from bookext.bibliography import read_bibliography
from bookext.interactive import INTERACTIVE
from bookext.markdown import Notebook
from bookext.mermaid import draw
from bookext.repository import Place

logger = logging.getLogger(__name__)

FOLDER = "colab"
DIAGRAM_WIDTH = 1200  # pixels; twice Colab's usual column, for sharp text

# torch is pinned to itself: pip then either keeps the one that is here or says that it is too old. Colab's
# torch is built for its GPU, and replacing it would cost several gigabytes.
INSTALL = '''\
# Installs the book's package, llm_core, and keeps the torch that is already here.
from importlib.metadata import version
from pathlib import Path

Path("keep-torch.txt").write_text(f"torch=={{version('torch')}}\\n")
%pip install --quiet --constraint keep-torch.txt "{requirement}"'''


def requirement_of(place: Place) -> str:
    """What pip installs: the package, from the repository's own address."""
    url = place.url or "https://github.com/OWNER/REPOSITORY"
    return f"llm-core @ git+{url}@{place.branch}"


def install_source(requirement: str) -> str:
    """The source of the first cell. A clone without a remote gets a placeholder and a line that says so."""
    source = INSTALL.format(requirement=requirement)
    if "OWNER/REPOSITORY" in requirement:
        source = "# Put your repository's address below: the clone that made this copy had no remote.\n" + source
    return source


def picture(source: str, name: str) -> str:
    """A Mermaid diagram as a Markdown image that carries its own pixels; Colab draws no Mermaid."""
    pixels = draw(source).png(width=DIAGRAM_WIDTH, background="#ffffff")
    return f"![{name}](data:image/png;base64,{base64.b64encode(pixels).decode()})"


def absolute_link(target: str, docname: str, sources: Mapping[str, str], place: Place) -> str:
    """Where a relative link of page `docname` leads from outside the book, or "" when nowhere.

    `sources` maps the path of each page's source to its page. A page leads to the published book when its
    address is known, and anything else (or any page otherwise) to the repository.
    """
    path, _, anchor = target.partition("#")
    suffix = f"#{anchor}" if anchor else ""
    own = next((source for source, page in sources.items() if page == docname), f"{docname}.ipynb")
    full = posixpath.normpath(posixpath.join(posixpath.dirname(docname), path)) if path else own
    if full in sources and place.page(sources[full]):
        return place.page(sources[full]) + suffix
    return f"{place.file(full)}{suffix}" if place.file(full) else ""


def colab_copy(
    notebook: NotebookNode, docname: str, entries: Mapping[str, Entry], sources: Mapping[str, str], place: Place
) -> NotebookNode:
    """The Colab copy of a notebook. Raises `ValueError` with the cell's number for MyST without a plain form."""
    copy = nbformat.from_dict(notebook)
    state = Notebook(
        entries=entries, link=lambda target: absolute_link(target, docname, sources, place), diagram=picture
    )
    state.read_ahead(cell.source for cell in copy.cells if cell.cell_type == "markdown")
    for number, cell in enumerate(copy.cells, start=1):
        try:
            if cell.cell_type == "markdown":
                cell.source = state.plain(cell.source)
            for output in cell.get("outputs", ()):
                output.get("data", {}).pop(INTERACTIVE, None)  # only the page's own scripts can draw it
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = state.plain(_joined(output.data["text/markdown"]))
        except ValueError as error:
            raise ValueError(f"cell {number}: {error}") from error
    install = nbformat.v4.new_code_cell(install_source(requirement_of(place)))
    install["id"] = "install"
    copy.cells.insert(0, install)
    copy.nbformat_minor = max(copy.nbformat_minor, 5)
    copy.metadata["colab"] = {"provenance": [], "toc_visible": True}
    return copy


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def write_copies(app: Sphinx, exception: Exception | None) -> None:
    """Write every chapter's and exercise's copy into `colab/` of the built site."""
    if exception is not None or app.builder.format != "html" or app.builder.name != "html":
        return
    root = Path(app.srcdir)
    sources = {str(app.env.doc2path(page, base=False)): page for page in app.env.found_docs}
    entries: dict[str, Any] = {}
    for file in app.config.bibtex_bibfiles if "bibtex_bibfiles" in app.config else ():
        entries.update(read_bibliography(root / file).entries)
    for source, docname in sorted(sources.items()):
        if not source.endswith(".ipynb") or not docname.startswith("chapters/"):
            continue
        notebook = nbformat.read(root / source, as_version=4)
        try:
            copy = colab_copy(notebook, docname, entries, sources, app.config.book_place)
        except ValueError as error:
            logger.warning("no Colab copy: %s", error, location=docname, type="book", subtype="colab")
            continue
        target = Path(app.outdir) / FOLDER / source
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(copy, target)


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("build-finished", write_copies)
