"""Drawings whose parts are links: an SVG with `<a href>` stands in the page itself, where a browser follows them.

A browser follows no link inside an `<img>`, which is what a Markdown image becomes. So a drawing that has links is
written into the page, and its links, which name sources of the book beside the drawing's own folder, lead to the pages
made of them. In JupyterLab, in Colab and in other forms of the book it stays the image that it was.

Its rules of style and its markers then belong to the whole page: a drawing with links has a class of its own, which
each of its rules begins with, and its ids begin with that class too.
"""

import html
import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

LINK = re.compile(r'(<a\b[^>]*?\bhref=")([^"]*)(")')
OPENING = re.compile(r"<svg\b[^>]*>")
ROLE = re.compile(r'\s(?:role|aria-label)="[^"]*"')
CLASS = re.compile(r'\sclass="([^"]*)"')


def has_links(svg: str) -> bool:
    """Whether a drawing has parts that lead somewhere."""
    return LINK.search(svg) is not None


def inline(svg: str, alt: str, address: Callable[[str], str]) -> str:
    """The drawing as it stands in a page: `alt` names it, and `address` says where each of its links leads.

    Not as `role="img"`: what is an image to a screen reader has no links in it.
    """
    drawing = svg[OPENING.search(svg).start() :].strip()  # type: ignore[union-attr]
    opening, rest = drawing.split(">", 1)
    classes = CLASS.search(opening)
    names = f"drawing {classes[1]}" if classes else "drawing"
    opening = CLASS.sub("", ROLE.sub("", opening))
    opening += f' class="{names}" role="group" aria-label="{html.escape(alt, quote=True)}"'
    rest = re.sub(r"<title>.*?</title>", "", rest, flags=re.DOTALL)  # a tooltip over the whole of it
    return LINK.sub(lambda link: link[1] + html.escape(address(link[2]), quote=True) + link[3], f"{opening}>{rest}")


class LinkedDrawings(SphinxPostTransform):
    """Put each drawing that has links into the page, in the place of its image."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Find the images of drawings with links."""
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            path = Path(self.app.srcdir, uri)
            if not uri.endswith(".svg") or not path.is_file():
                continue
            svg = path.read_text(encoding="utf-8")
            if has_links(svg):
                drawing = inline(svg, image.get("alt", ""), partial(self.address, uri))
                image.replace_self(nodes.raw("", drawing, format="html"))

    def address(self, drawing: str, href: str) -> str:
        """The page of a source, as this page links to it."""
        source, _, name = href.partition("#")
        docname = posixpath.normpath(posixpath.join(posixpath.dirname(drawing), source)).rpartition(".")[0]
        if docname not in self.env.all_docs:
            logger.warning(
                "the drawing %s links to %s, which is no page of the book",
                drawing,
                href,
                location=self.env.docname,
                type="book",
                subtype="drawing",
            )
            return href
        page = self.app.builder.get_relative_uri(self.env.docname, docname)
        return f"{page}#{name}" if name else page


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.add_post_transform(LinkedDrawings)
