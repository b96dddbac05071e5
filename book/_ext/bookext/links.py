"""Links to anything on another page, written as plain Markdown, and checked.

JupyterLab, GitHub and Colab follow `[text](other.ipynb#name)`; MyST itself finds only headings there. This
also finds labels `(name)=`, equations, glossary terms and bibliography entries. A link to an entry of the
bibliography is a citation, so its text has to name the work: year and first author's surname.
"""

from collections.abc import Iterator
from typing import Any, cast

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.math import MathDomain
from sphinx.domains.std import StandardDomain
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinxcontrib.bibtex.citation_target import CitationTarget
from sphinxcontrib.bibtex.roles import CitationRef

from bookext.bibliography import authors_of, names_entry, year_of

logger = logging.getLogger(__name__)


def citations(env: BuildEnvironment) -> Iterator[Any]:
    """Every entry that some page's bibliography lists."""
    if "cite" in env.domains:
        yield from env.get_domain("cite").citations  # type: ignore[attr-defined]


def find_target(env: BuildEnvironment, docname: str, name: str) -> str | None:
    """The HTML id that `name` stands for on page `docname`, or None."""
    if name in env.metadata[docname].get("myst_slugs", {}):
        return cast(str, env.metadata[docname]["myst_slugs"][name][1])
    std = cast(StandardDomain, env.get_domain("std"))
    if std.anonlabels.get(name.lower(), ("", ""))[0] == docname:
        return std.anonlabels[name.lower()][1]
    math = cast(MathDomain, env.get_domain("math"))
    if math.equations.get(name, ("", 0))[0] == docname:
        return nodes.make_id(f"equation-{name}")
    for citation in citations(env):
        if citation.key == name and citation.bibliography_key.docname == docname:
            return cast(str, citation.citation_id)
    for element in env.get_doctree(docname).findall(nodes.Element):
        if name in element.get("ids", ()):
            return name
    return None


def note_citations(app: Sphinx, doctree: nodes.document) -> None:
    """Count links to the bibliography as citations, so that it lists the works which only such links name."""
    if "cite" not in app.env.domains:
        return
    domain: Any = app.env.get_domain("cite")
    keys = {entry.key for entry in domain.get_entries(list(domain.bibdata.bibfiles))}
    for number, node in enumerate(doctree.findall(addnodes.pending_xref)):
        key = node.get("reftargetid")
        if node["reftype"] == "myst" and key in keys:
            docname = app.env.docname
            targets = [CitationTarget(key, "", "")]
            domain.citation_refs.append(CitationRef(f"citation-{number}", docname, node.line or 0, targets))


class LinksAcrossPages(SphinxPostTransform):
    """Resolve them just before MyST's own resolver, which would call them missing."""

    default_priority = 8

    def run(self, **kwargs: Any) -> None:
        """Resolve what can be; leave the rest to MyST and its warnings."""
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node["reftype"] != "myst":
                continue
            if node["refdomain"] == "doc":
                page, name = node["reftarget"], node.get("reftargetid")
            else:  # [text](#eq-name): Sphinx would put the number in the text's place
                page, name = self.env.docname, node["reftarget"]
                if not node.get("refexplicit") or name not in cast(MathDomain, self.env.get_domain("math")).equations:
                    continue
            if not name or page not in self.env.all_docs:
                continue
            identity = find_target(self.env, page, name)
            if identity is None:
                continue
            self.check_citation(node, page, name)
            words = node[0].children if node.get("refexplicit") else [nodes.Text(self.title(page, name))]
            inner = nodes.inline("", "", *[word.deepcopy() for word in words], classes=["std", "std-ref"])
            node.replace_self(make_refnode(self.app.builder, self.env.docname, page, identity, inner))

    def title(self, page: str, name: str) -> str:
        """What `[](page#name)` shows: the title of that section, or the name itself."""
        slug = self.env.metadata[page].get("myst_slugs", {}).get(name)
        label = cast(StandardDomain, self.env.get_domain("std")).labels.get(name.lower())
        return str(slug[2]) if slug else str(label[2]) if label else name

    def check_citation(self, node: addnodes.pending_xref, page: str, name: str) -> None:
        """A citation says whom it cites."""
        for citation in citations(self.env):
            if citation.key != name or citation.bibliography_key.docname != page:
                continue
            if not names_entry(node.astext(), citation.entry):
                logger.warning(
                    "the citation [%s] does not name %s: write %s, %s",
                    node.astext(),
                    name,
                    authors_of(citation.entry),
                    year_of(citation.entry),
                    location=node,
                    type="book",
                    subtype="citation",
                )


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("doctree-read", note_citations)
    app.add_post_transform(LinksAcrossPages)
