"""Nothing on a page names a script of another host.

Jupyter Book brings sphinx-thebe along, which writes a CDN's address into every page even when live code is
off. Its scripts and its configuration are taken out again.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def without_thebe(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take out the configuration that thebe appended to the page's end."""
    for raw in list(doctree.findall(nodes.raw)):
        if "thebe" in raw.astext() or "kernelName" in raw.astext():
            raw.parent.remove(raw)


def only_local_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Take thebe's files out of a page's lists. In place: rebinding a list leaks into the next page."""
    for name in ("script_files", "css_files"):
        files = context.get(name)
        if files is not None:
            files[:] = [file for file in files if not _is_thebe(file)]


def _is_thebe(file: Any) -> bool:
    attributes = getattr(file, "attributes", {})
    return "thebe" in f"{getattr(file, 'filename', file)} {attributes.get('body', '')}".lower()


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("doctree-resolved", without_thebe, priority=900)
    app.connect("html-page-context", only_local_scripts, priority=900)
