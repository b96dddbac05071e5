"""`:::{tip} Own title` shows its title, as it does in JupyterLab.

docutils takes the words behind `{tip}` for the first words of the text. Here they are the title, and the
box keeps the kind's colour and icon.
"""

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst.directives.admonitions import BaseAdmonition
from sphinx.application import Sphinx

KINDS: dict[str, type[nodes.Element]] = {
    "attention": nodes.attention,
    "caution": nodes.caution,
    "danger": nodes.danger,
    "error": nodes.error,
    "hint": nodes.hint,
    "important": nodes.important,
    "note": nodes.note,
    "tip": nodes.tip,
    "warning": nodes.warning,
}


class TitledAdmonition(BaseAdmonition):
    """A box of a known kind, with an optional title of its own."""

    optional_arguments = 1
    final_argument_whitespace = True
    node_class: ClassVar[type[nodes.Element]]

    def run(self) -> list[nodes.Node]:
        """The kind's own node without a title; an admonition with a title and the kind's class otherwise."""
        if not self.arguments:
            return list(super().run())
        title = self.arguments.pop()
        words, messages = self.state.inline_text(title, self.lineno)
        kind = self.node_class.__name__
        box = nodes.admonition("", nodes.title(title, "", *words), *messages, classes=["admonition", kind])
        box["classes"] += self.options.get("class", [])
        self.set_source_info_of(box)
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]

    def set_source_info_of(self, node: nodes.Element) -> None:
        """Let warnings about the box name its line."""
        node.source, node.line = self.state_machine.get_source_and_line(self.lineno)


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    for name, node_class in KINDS.items():
        app.add_directive(
            name, type(node_class.__name__, (TitledAdmonition,), {"node_class": node_class}), override=True
        )
