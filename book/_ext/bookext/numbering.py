"""Chapters carry the numbers of the article's sections, read off their folders.

`chapters/03_algorithms/index` is section 3 of the book and `chapters/03_algorithms/01_self_attention` its
chapter 3.1, whether or not 2.4 exists already; the chapter's parts are 3.1.1, 3.1.2 and so on, and its figures
count along with them. Sphinx itself can only count the entries of a table of contents. Exercises and the pages
around the chapters have no numbers.
"""

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector

CHAPTER = re.compile(r"(?:.*/)?chapters/(\d+)_[^/]+/(\d+)_[^/]+$")
SECTION = re.compile(r"(?:.*/)?chapters/(\d+)_[^/]+/index$")
DEPTH = 3  # how many numbers a heading carries at most: 3.1.2


def chapter_number(docname: str) -> tuple[int, int] | None:
    """(3, 1) for `chapters/03_algorithms/01_self_attention`; None for a page that is no chapter.

    >>> chapter_number("chapters/04_mathematics/03_worked_example")
    (4, 3)
    >>> chapter_number("chapters/04_mathematics/exercises/01_scores") is None
    True
    """
    match = CHAPTER.match(docname)
    return (int(match.group(1)), int(match.group(2))) if match else None


def section_number(docname: str) -> tuple[int] | None:
    """(3,) for `chapters/03_algorithms/index`, the page of a section; None for any other.

    >>> section_number("chapters/03_algorithms/index")
    (3,)
    >>> section_number("book/index") is None
    True
    """
    match = SECTION.match(docname)
    return (int(match.group(1)),) if match else None


def headings(toc: nodes.Element, number: tuple[int, ...]) -> Iterator[tuple[nodes.reference, tuple[int, ...] | None]]:
    """The headings below `toc`, a page's outline, with their numbers; the first of them carries `number` itself.

    A heading too deep for a number gets None: Sphinx gives one that it does not know the number of the page.
    """
    for position, item in enumerate(toc.children, start=1):
        own = number if position == 1 else (*number[:-1], number[-1] + position - 1)
        for part in item.children:
            if isinstance(part, addnodes.compact_paragraph) and isinstance(part[0], nodes.reference):
                yield part[0], own if len(own) <= DEPTH else None
            elif isinstance(part, nodes.bullet_list):
                yield from headings(part, (*own, 1))


def number_chapters(env: BuildEnvironment) -> None:
    """Put the numbers of each chapter and section where Sphinx keeps them."""
    for docname, toc in env.tocs.items():
        own = chapter_number(docname) or section_number(docname)
        if own is None:
            continue
        numbers: Any = {}
        for reference, number in headings(toc, own):
            if len(own) == 1 and number != own:
                number = None  # below the title of a section's page: 3.1 is a chapter, not a heading of it
            numbers[reference["anchorname"]] = reference["secnumber"] = number
        env.toc_secnumbers[docname] = numbers
        env.titles[docname]["secnumber"] = own


def count_anew(env: BuildEnvironment) -> None:
    """Let the figures of a page without a number begin with 1: Sphinx counts them on from page to page."""
    for docname, kinds in env.toc_fignumbers.items():
        if env.titles[docname].get("secnumber") is None:
            for numbers in kinds.values():
                numbers.update({name: (count,) for count, name in enumerate(numbers, start=1)})


def install() -> None:
    """Number the chapters right after Sphinx's own numbering, before figures take their numbers from it."""
    original = TocTreeCollector.assign_section_numbers
    if getattr(original, "by_folder", False):
        return

    def assign_section_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        before = env.toc_secnumbers
        changed = original(self, env)
        number_chapters(env)
        renumbered = [name for name, numbers in env.toc_secnumbers.items() if numbers != before.get(name)]
        return sorted({*changed, *renumbered})

    assign_section_numbers.by_folder = True  # type: ignore[attr-defined]
    TocTreeCollector.assign_section_numbers = assign_section_numbers  # type: ignore[method-assign]

    figures = TocTreeCollector.assign_figure_numbers

    def assign_figure_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        changed = figures(self, env)
        count_anew(env)
        return changed

    TocTreeCollector.assign_figure_numbers = assign_figure_numbers  # type: ignore[method-assign]


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    install()
