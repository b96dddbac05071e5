"""Figures that carry data become figures that a reader can play with, where scripts run.

`llm_core.figures.show(..., interactive=Interactive(kind, data))` puts the data beside the image, in the same output.
On the page they stand in the figure, between the image and its caption:

    <div class="interactive" data-kind="..."><script type="application/json">...</script></div>

`_static/interactive.js` and `_static/interactive/<kind>.js` draw it and hide the image. Only a page that has such a
figure loads them, and only the kinds that it has. Without scripts, and on paper, the image is what one sees.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# As in llm_core/figures/captioned.py: the book is built without importing the package.
INTERACTIVE = "application/vnd.llm-core.interactive+json"

KINDS = sorted(path.stem for path in (Path(__file__).parents[2] / "_static" / "interactive").glob("*.js"))


class interactive(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """The data of an interactive figure: `kind`, and `json` as it stands on the page."""


def page_json(data: Any) -> str:
    """Data as JSON that may stand in a <script>: nothing in a text of it can end the element, or open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # in JSON these stand in strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def keep_data() -> None:
    """Teach myst-nb the type of the data, which it would warn of and leave out."""
    original = NbElementRenderer.render_mime_type
    if getattr(original, "keeps_interactive_data", False):
        return

    def render_mime_type(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
        if data.mime_type != INTERACTIVE:
            return original(self, data)
        node = interactive("", kind=data.content["kind"], json="null")  # null is drawn as the picture that it came with
        try:
            node["json"] = page_json(data.content["data"])
        except ValueError as error:
            node["error"] = f"what is no JSON (a NaN or an infinity?) is in an interactive figure's data: {error}"
        return [node]

    render_mime_type.keeps_interactive_data = True  # type: ignore[attr-defined]
    NbElementRenderer.render_mime_type = render_mime_type


def data_of(bundle: nodes.Node) -> list[interactive]:
    """The data that came with an image in one output: one node, or none."""
    return list(bundle.findall(interactive))


def check(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of data that no script would find or could draw."""
    for node in doctree.findall(interactive):
        problem = node.get("error", "")
        if not isinstance(node.parent, nodes.figure):
            problem = "an interactive figure has no caption: draw it with llm_core.figures.show"
        elif node["kind"] not in KINDS:
            problem = f"there is no interactive figure of the kind {node['kind']!r}; there are {', '.join(KINDS)}"
        if problem:
            logger.warning(problem, location=app.env.docname, type="book", subtype="interactive")


def load_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load what draws the figures of this page. Called for each page, and so for this page only."""
    kinds = sorted({node["kind"] for node in doctree.findall(interactive)}) if doctree is not None else []
    if not kinds:
        return
    app.add_css_file("interactive.css")
    # Deferred scripts run in this order, when the page is there.
    for name in ("interactive.js", *(f"interactive/{kind}.js" for kind in kinds)):
        app.add_js_file(name, loading_method="defer")


def visit_html(translator: Any, node: interactive) -> None:
    """Write the data; nothing of it is seen unless a script draws it."""
    kind = translator.attval(node["kind"])
    translator.body.append(
        f'<div class="interactive" data-kind="{kind}"><script type="application/json">{node["json"]}</script></div>\n'
    )
    raise nodes.SkipNode


def skip(translator: Any, node: interactive) -> None:
    """Other forms of the book have the image."""
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    keep_data()
    app.add_node(interactive, html=(visit_html, None), latex=(skip, None), text=(skip, None), man=(skip, None))
    app.connect("doctree-read", check)
    app.connect("html-page-context", load_scripts)
