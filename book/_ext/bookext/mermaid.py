"""Mermaid diagrams, drawn as SVG while the book is built: no script and no request in the page.

Both forms work: a directive with `:alt:`, or the plain fence that JupyterLab and GitHub draw as well,
named by Mermaid's own `accTitle:` (and `accDescr:`) lines. The stylesheet colours the shapes, for the
light theme and for the dark one.
"""

import hashlib
import html
import re
from typing import Any, ClassVar

import mmdr
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

ACC_TITLE = re.compile(r"^\s*accTitle\s*:\s*(\S.*?)\s*$", re.MULTILINE)
NATURAL_WIDTH = re.compile(r"max-width:\s*([\d.]+)px")


class mermaid_diagram(nodes.General, nodes.Element):  # docutils names its node classes in lower case
    """A diagram's finished SVG, and its name for people who do not see it."""


def diagram_name(source: str) -> str:
    """The diagram's `accTitle`, or an empty string."""
    match = ACC_TITLE.search(source)
    return match.group(1) if match else ""


def draw(source: str) -> mmdr.Diagram:
    """Draw a diagram. Raises `ValueError` with Mermaid's own message when the source is not valid."""
    diagram = mmdr.render(source)
    if "<svg" not in diagram.svg():
        raise ValueError("the diagram came out empty")
    return diagram


def inline_svg(source: str, name: str, identity: str) -> str:
    """The SVG of a diagram, ready to stand inside a page.

    Identifiers are made unique with `identity`, since a page may hold several diagrams; `name` is what a
    screen reader says; the natural width goes into a CSS variable so that the stylesheet decides how far
    the drawing may shrink. Raises `ValueError` as `draw` does.
    """
    svg = draw(source).svg()
    # Rules for a look that we do not use: two thirds of the file.
    svg = re.sub(r'#merman \[data-look="neo"\]\[data-color-id[^{}]*\{[^{}]*\}', "", svg)
    svg = re.sub(r' data-(?:points|et|edge|color-id)="[^"]*"', "", svg)
    for prefix in ('id="', "#", "chart-title-", "chart-desc-"):
        svg = svg.replace(f"{prefix}merman", f"{prefix}{identity}")
    opening, rest = svg.split(">", 1)
    width = NATURAL_WIDTH.search(opening)
    opening = re.sub(r' (?:role|aria-roledescription|aria-labelledby|style|width)="[^"]*"', "", opening)
    style = f' style="--natural-width: {float(width.group(1)):.0f}px"' if width else ""
    return f'{opening} role="img" aria-label="{html.escape(name, quote=True)}"{style}>{rest}'


class MermaidDirective(SphinxDirective):
    """```` ```{mermaid} ```` or ```` ```mermaid ````: a diagram, drawn now."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Draw the diagram, or report where and why it cannot be drawn."""
        source = "\n".join(self.content)
        name = self.options.get("alt") or diagram_name(source)
        if not name:
            logger.warning(
                "a Mermaid diagram has no name for people who cannot see it: "
                "add a line 'accTitle: ...' below the diagram's first line, or the option :alt:",
                location=self.get_location(),
                type="book",
                subtype="alt",
            )
        digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        identity = f"diagram-{self.env.new_serialno('mermaid')}-{digest}"
        try:
            svg = inline_svg(source, name, identity)
        except ValueError as error:
            logger.warning(
                "Mermaid diagram not drawn: %s", error, location=self.get_location(), type="book", subtype="mermaid"
            )
            return [nodes.literal_block(source, source)]
        return [mermaid_diagram("", svg=svg, name=name)]


def visit_html(self: Any, node: mermaid_diagram) -> None:
    """Write the SVG into the page."""
    self.body.append(f'<div class="diagram">{node["svg"]}</div>\n')
    raise nodes.SkipNode


def visit_other(self: Any, node: mermaid_diagram) -> None:
    """Other formats get the diagram's name."""
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    other = (visit_other, None)
    app.add_node(mermaid_diagram, html=(visit_html, None), latex=other, text=other, man=other, texinfo=other)
    app.add_directive("mermaid", MermaidDirective)
