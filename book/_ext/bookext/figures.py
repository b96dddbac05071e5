"""An image output and the caption that follows it become one numbered figure; a table and its caption, a table.

`llm_core.figures.show` emits an image and then, as Markdown, "**Figure.** caption". In JupyterLab and in
Colab a reader sees the one below the other; on the page they are a `<figure>` with a number, so that a
caption is never typed with one. The alternative text travels in the output's metadata. An image without
any is a warning, and so a failed build.

`llm_core.figures.table` emits one Markdown output: "**Table.** caption", where there is one, and the table.
"""

from typing import Any

from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from bookext import interactive

logger = logging.getLogger(__name__)

CAPTION_MARK = "Figure."
TABLE_MARK = "Table."


def keep_alt_text() -> None:
    """Teach myst-nb to read `alt` from an output's metadata, where it reads only width and height."""
    original = NbElementRenderer.render_image
    if getattr(original, "keeps_alt_text", False):
        return

    def render_image(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
        rendered = original(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        for node in rendered:
            if alt and isinstance(node, nodes.image):
                node["alt"] = alt
        return rendered

    render_image.keeps_alt_text = True  # type: ignore[attr-defined]
    NbElementRenderer.render_image = render_image


def part_of_bundle(node: nodes.Node, mime_prefix: str) -> nodes.container | None:
    """The part of an output whose MIME type starts with `mime_prefix`, or None."""
    if not (isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"):
        return None
    for part in node.children:
        if isinstance(part, nodes.container) and part.get("mime_type", "").startswith(mime_prefix):
            return part
    return None


def is_caption(part: nodes.container | None, mark: str = CAPTION_MARK) -> bool:
    """Whether a Markdown output starts with a bold "Figure.", or with another mark."""
    if part is None or not part.children or not isinstance(part[0], nodes.paragraph):
        return False
    words = _words(part[0])
    return bool(words) and isinstance(words[0], nodes.strong) and words[0].astext() == mark


def _words(paragraph: nodes.Element) -> list[nodes.Node]:
    """A paragraph's content without the empty texts that MyST leaves in front of bold words."""
    return [child for child in paragraph.children if child.astext() or not isinstance(child, nodes.Text)]


def words_of_caption(paragraph: nodes.Element) -> list[nodes.Node]:
    """What a caption's paragraph says after its mark."""
    words = _words(paragraph)[1:]
    if words and isinstance(words[0], nodes.Text):
        words[0] = nodes.Text(words[0].lstrip())
    return words


def make_figure(bundle: nodes.container, caption_part: nodes.container, identity: str) -> nodes.figure:
    """A figure of the bundle's image, with the caption's first paragraph below it and the others as a legend."""
    image = next(iter(bundle.findall(nodes.image)))
    paragraph = caption_part[0]
    assert isinstance(paragraph, nodes.paragraph)
    caption = nodes.caption("", "", *words_of_caption(paragraph))
    caption.source, caption.line = paragraph.source, paragraph.line
    figure = nodes.figure("", image, *interactive.data_of(bundle), caption, ids=[identity])
    figure.source, figure.line = paragraph.source, paragraph.line
    if len(caption_part) > 1:
        figure += nodes.legend("", *caption_part.children[1:])
    return figure


def caption_table(part: nodes.container, identity: str) -> nodes.table | None:
    """Make the first paragraph of a Markdown output the title of the table that follows it, if one does."""
    if not (is_caption(part, TABLE_MARK) and len(part) > 1 and isinstance(part[1], nodes.table)):
        return None
    paragraph, table = part[0], part[1]
    title = nodes.title("", "", *words_of_caption(paragraph))
    title.source, title.line = paragraph.source, paragraph.line
    table.insert(0, title)
    table["ids"].append(identity)
    part.remove(paragraph)
    return table


class CaptionedOutputs(SphinxTransform):
    """Join images and captions. Before Sphinx counts the figures, which happens once a page is read."""

    default_priority = 600

    def apply(self, **kwargs: Any) -> None:
        """Find every output that is an image followed by a caption, or a table below one."""
        count = tables = 0
        for output in list(self.document.findall(nodes.container)):
            if output.get("nb_element") != "cell_code_output":
                continue
            for bundle in output.children:
                part = part_of_bundle(bundle, "text/markdown")
                table = None if part is None else caption_table(part, f"table-{tables + 1}")
                if table is not None:
                    tables += 1
                    self.document.note_explicit_target(table, table)
            for image_bundle, caption_bundle in zip(output.children[:-1], output.children[1:], strict=True):
                image_part = part_of_bundle(image_bundle, "image/")
                caption_part = part_of_bundle(caption_bundle, "text/markdown")
                if image_part is None or caption_part is None or not is_caption(caption_part):
                    continue
                count += 1
                figure = make_figure(image_bundle, caption_part, f"figure-{count}")
                self.document.note_explicit_target(figure, figure)
                output.replace(image_bundle, figure)
                output.remove(caption_bundle)


def check_alt_text(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of every image that a reader who cannot see it would miss."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "an image has no alternative text: give show() an alt=, or the Markdown image its [text]",
                location=_nearest_position(image, app.env.docname),
                type="book",
                subtype="alt",
            )
    for output in doctree.findall(nodes.container):
        caption = part_of_bundle(output, "text/markdown")
        if caption is not None and is_caption(caption):
            logger.warning(
                "a caption that starts with **Figure.** does not follow an image output",
                location=_nearest_position(caption, app.env.docname),
                type="book",
                subtype="caption",
            )
        if caption is not None and is_caption(caption, TABLE_MARK):
            logger.warning(
                "a caption that starts with **Table.** does not stand above a table in the same output",
                location=_nearest_position(caption, app.env.docname),
                type="book",
                subtype="caption",
            )


def _nearest_position(node: nodes.Node, docname: str) -> Any:
    """The closest ancestor that knows its line; images from outputs do not know theirs."""
    current: nodes.Node | None = node
    while current is not None and not current.line:
        current = current.parent
    return current if current is not None else docname


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    keep_alt_text()
    app.add_transform(CaptionedOutputs)
    app.connect("doctree-read", check_alt_text)
