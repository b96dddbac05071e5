"""Pages of a dump, held to those that gensim finds in it."""

from __future__ import annotations

import bz2
import re
import tracemalloc

import pytest
from gensim.corpora.wikicorpus import extract_pages

from llm_core.data.corpora import CorpusError, corpus_path, load_text
from llm_core.data.wikipedia import pages


@pytest.mark.parametrize("name", ["wikipedia-sample", "wikipedia-articles"])
def test_the_pages_are_those_that_gensim_finds(name):
    path = corpus_path(name)
    with bz2.open(path) as file:
        expected = [(title, text or "", int(number)) for title, text, number in extract_pages(file)]
    assert [(page.title, page.wikitext, page.id) for page in pages(path)] == expected


def test_a_page_says_what_it_is():
    found = {page.title: page for page in pages(corpus_path("wikipedia-sample"))}
    redirect = found["AccessibleComputing"]
    assert (redirect.redirect, redirect.namespace, redirect.id, redirect.revision) == (
        "Computer accessibility",
        0,
        10,
        631144794,
    )
    assert redirect.wikitext.startswith("#REDIRECT [[Computer accessibility]]")
    assert found["Wikipedia:Adding Wikipedia articles to Nupedia"].namespace == 4
    assert found["Aardvark"].redirect is None
    assert found["Aardvark"].wikitext.count("'''") > 1
    assert "&lt;" not in found["ASCII"].wikitext.partition("<code>")[0]  # XML's own escapes are undone


def test_a_dump_may_lie_there_unpacked(tmp_path):
    path = tmp_path / "dump.xml"
    path.write_text(load_text("wikipedia-sample"), encoding="utf-8")
    assert list(pages(path)) == list(pages(corpus_path("wikipedia-sample")))


def test_the_name_of_the_format_does_not_matter(tmp_path):
    text = load_text("wikipedia-sample")
    for new in (text.replace("export-0.10", "export-0.11"), re.sub(r"<mediawiki[^>]*>", "<mediawiki>", text)):
        path = tmp_path / "dump.xml"
        path.write_text(new, encoding="utf-8")
        assert list(pages(path)) == list(pages(corpus_path("wikipedia-sample")))


def test_a_long_dump_is_not_kept_in_memory(tmp_path):
    """Twenty times the pages, and no more memory."""
    head, page, tail = re.split(r"(?<=</siteinfo>\n)|(?=</mediawiki>)", load_text("wikipedia-sample"))
    peaks = []
    for times in (1, 8):
        path = tmp_path / "dump.xml"
        path.write_text(head + times * page + tail, encoding="utf-8")
        tracemalloc.start()
        assert sum(1 for _ in pages(path)) == 34 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_dump_that_was_cut_short_says_so(share, tmp_path):
    content = corpus_path("wikipedia-sample").read_bytes()
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorpusError, match=r"dump\.xml\.bz2 is cut short or damaged: .*get it again"):
        list(pages(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"BZh9 nothing of the kind", "damaged: Invalid data stream"),
        (bz2.compress(b"<html></html>"), "not a dump of MediaWiki: its XML begins with <html>"),
        (bz2.compress(b"a text"), "damaged: syntax error"),
        (bz2.compress(b""), "damaged: no element found"),
    ],
)
def test_what_is_no_dump_says_so(content, message, tmp_path):
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(pages(path))
    with pytest.raises(FileNotFoundError):
        list(pages(tmp_path / "another.xml.bz2"))
