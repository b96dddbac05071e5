"""The pages of a dump of Wikipedia, read one after another from its compressed file.

A dump is one XML document of any size, compressed by bzip2; the English one has 100 GB inside. So it is decompressed
and parsed as it is read, and a page that was handed out is forgotten: the memory is that of the longest page. What a
page holds is wikitext, the language its authors wrote it in.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from llm_core.data.corpora import CorpusError


@dataclass(frozen=True)
class Page:
    """One page of a dump.

    Attributes:
        title: its title, in other namespaces than 0 with their name before it.
        namespace: 0 for articles.
        id: the page's number.
        revision: the number of its version in the dump; it stands for the authors in the page's history.
        redirect: the title of the page that this one only points to; None: it has a text of its own.
        wikitext: what its authors wrote.
    """

    title: str
    namespace: int
    id: int
    revision: int
    redirect: str | None
    wikitext: str


def pages(dump: str | Path) -> Iterator[Page]:
    """All pages of a dump, in its order, redirects and other namespaces too.

    Args:
        dump: the file, an XML document as MediaWiki exports it, of any version; compressed if its name ends in .bz2.

    Raises:
        CorpusError: the file is cut short or damaged, or it is no such document. The pages before the damage have
            been handed out by then.
        OSError: it cannot be read.

    >>> from llm_core.data.corpora import corpus_path
    >>> [page.title for page in pages(corpus_path("wikipedia-sample"))][:3]
    ['AccessibleComputing', 'Albedo', 'AsciiArt']
    """
    path = Path(dump)
    with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as file:
        events = ElementTree.iterparse(file, ["start", "end"])
        try:
            _, root = next(events)
            name, _, tag = root.tag.rpartition("}")  # each version of the format has a name of its own: {...}
            space = name + "}" if name else ""
            if tag != "mediawiki":
                raise CorpusError(f"{path} is not a dump of MediaWiki: its XML begins with <{tag}>, not <mediawiki>")
            for event, element in events:
                if event == "end" and element.tag == f"{space}page":
                    yield _page(element, space)
                    root.clear()  # or the whole dump would stay in memory
        except (ElementTree.ParseError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file itself, not of what is in it
            raise CorpusError(f"{path} is cut short or damaged: {error}; get it again") from error


def _page(element: ElementTree.Element, space: str) -> Page:
    """A page as its element says."""

    def text(path: str) -> str:
        return element.findtext("/".join(space + part for part in path.split("/"))) or ""

    redirect = element.find(f"{space}redirect")
    return Page(
        title=text("title"),
        namespace=int(text("ns")),
        id=int(text("id")),
        revision=int(text("revision/id")),
        redirect=None if redirect is None else redirect.get("title"),
        wikitext=text("revision/text"),
    )
