"""Citations by author and year: "Vaswani et al., 2017" reads better than "[VSP+17]" or "[31]".

One function makes the short form from a BibTeX entry; the bibliography, the checks on links to it and the
Colab copies share it.
"""

import re
from pathlib import Path
from typing import Any

from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import node
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.style.referencing import basic_author_year


def plain(text: str) -> str:
    """BibTeX text as Unicode: no braces, no TeX accents."""
    return str(Text.from_latex(text)) if text else ""


def surnames(entry: Entry) -> list[str]:
    """The surnames of an entry's authors (or editors), or its organisation's name as a whole."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    return [plain(" ".join(person.prelast_names + person.last_names)) for person in people]


def year_of(entry: Entry) -> str:
    """The year, or "n.d."."""
    return str(entry.fields.get("year", "n.d."))


def authors_of(entry: Entry) -> str:
    """ "Vaswani et al.", "Press and Wolf", "Shannon"."""
    names = surnames(entry)
    if not names:
        return plain(entry.fields.get("title", entry.key))
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def address_of(entry: Entry) -> str:
    """Where to read the work: its url, else its DOI, else its arXiv number, else an empty string."""
    fields = entry.fields
    if fields.get("url"):
        return str(fields["url"]).replace("\\_", "_").replace("\\%", "%").replace("\\#", "#")
    if fields.get("doi"):
        return f"https://doi.org/{fields['doi']}"
    if fields.get("eprint") and fields.get("archiveprefix", "arXiv").lower() == "arxiv":
        return f"https://arxiv.org/abs/{fields['eprint']}"
    return ""


def read_bibliography(path: Path) -> BibliographyData:
    """The entries of a .bib file. Raises pybtex's own error when it is malformed."""
    return parse_file(str(path), bib_format="bibtex")


def names_entry(text: str, entry: Entry) -> bool:
    """Whether a link's text names this work: its year and its first author's surname stand in it."""
    folded = re.sub(r"\s+", " ", text)
    names = surnames(entry)
    return year_of(entry) in folded and (not names or names[0] in folded)


class AuthorYearLabels(BaseLabelStyle):
    """Labels "Vaswani et al., 2017", with a, b, ... where two works would share one."""

    def format_labels(self, sorted_entries: list[Entry]) -> list[str]:
        """One label for each entry, in order."""
        labels = [f"{authors_of(entry)}, {year_of(entry)}" for entry in sorted_entries]
        seen: dict[str, int] = {}
        result = []
        for label in labels:
            if labels.count(label) > 1:
                seen[label] = seen.get(label, 0) + 1
                label += "abcdefghijklmnopqrstuvwxyz"[seen[label] - 1]
            result.append(label)
        return result


class AuthorYearStyle(UnsrtStyle):
    """A bibliography sorted by author and year, labelled the same way."""

    default_sorting_style = "author_year_title"
    default_label_style = AuthorYearLabels


@node
def year_of_label(children: list[Any], data: dict[str, Any]) -> Text:
    """The year as the bibliography's own label has it: 2013a where the author has another work of 2013."""
    return Text(data["formatted_entry"].label.rpartition(", ")[2])


def setup(app: Sphinx) -> None:
    """Register with pybtex, which is where sphinxcontrib-bibtex looks styles up."""
    basic_author_year.year = year_of_label  # its styles look the name up at each citation
    register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle)
