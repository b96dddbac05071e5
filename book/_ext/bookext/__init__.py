"""The book's own Sphinx extension: one small file for each thing that Jupyter Book does not do by itself.

    mathjax      formulas from a local copy of MathJax
    mermaid      diagrams drawn as SVG while the book is built
    figures      an image output and its caption become one numbered figure; no image without alt text
    interactive  figures that a reader can play with, where scripts run
    drawings     drawings by hand whose parts are links
    admonitions  boxes with a title of their own, `:::{tip} Title`, as JupyterLab shows them
    links        links to labels and citations on other pages, checked
    bibliography author-year citations
    numbering    chapters numbered by their folders
    offline      nothing on a page names another host's script
    repository   launch, edit and issue buttons follow the clone's own remote
    colab        copies of the notebooks for Google Colab, beside the book
    api          the reference of the package, linked with the chapters both ways

`figures` and `colab` use `interactive`, `links` and `colab` use `markdown` (MyST to plain Markdown); `repository`
says where all of it lives. `api` uses `docstrings` (to reStructuredText) and `usage` (who imports what).
"""

from typing import Any

from sphinx.application import Sphinx

from bookext import (
    admonitions,
    api,
    bibliography,
    colab,
    drawings,
    figures,
    interactive,
    links,
    mathjax,
    mermaid,
    numbering,
    offline,
    repository,
)

PARTS = (
    mathjax, mermaid, figures, interactive, drawings, admonitions, links, bibliography, numbering, offline, repository,
    colab, api,
)  # fmt: skip


def setup(app: Sphinx) -> dict[str, Any]:
    """Register every part with Sphinx."""
    for part in PARTS:
        part.setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
