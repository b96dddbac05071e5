"""Pages of a dump, held to those that gensim finds in it."""

from __future__ import annotations

import bz2
import gzip
import re
import tracemalloc

import pytest
from gensim.corpora.wikicorpus import extract_pages

from llm_core.data.corpora import CorpusError, corpus_path, load_text
from llm_core.data.wikipedia import pages, streams


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
    found, damage = list(good := pages(path, on_damage=(told := []).append)), told
    assert "dump.xml.bz2 is cut short or damaged after" in damage[0]
    assert f"after {len(found)} pages" in damage[-1]
    assert found == list(pages(corpus_path("wikipedia-sample")))[: len(found)]
    assert next(good, None) is None
    with pytest.raises(CorpusError, match=rf"after {len(found)} pages.* it ends in the midst .*get it again"):
        list(pages(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"BZh9 nothing of the kind", "damaged after 0 pages: its compression is broken: Invalid data stream"),
        (bz2.compress(b"<html></html>"), "not a dump of MediaWiki: its XML begins with <html>"),
        (bz2.compress(b"a text"), "not a dump of MediaWiki: it begins with b'a text'"),
        (bz2.compress(b""), "damaged after 0 pages: there is nothing in it"),
        (b"", "damaged after 0 pages: there is nothing in it"),
    ],
)
def test_what_is_no_dump_says_so(content, message, tmp_path):
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(pages(path))
    with pytest.raises(FileNotFoundError):
        list(pages(tmp_path / "another.xml.bz2"))


HEAD, *MADE, TAIL = (
    "<mediawiki>\n",
    *(
        f"<page><title>T{n}</title><ns>0</ns><id>{n}</id>"
        f"<revision><id>{n}</id><text>text {n}</text></revision></page>\n"
        for n in range(1, 7)
    ),
    "</mediawiki>\n",
)


def titles(path, damage):
    return [page.title for page in pages(path, on_damage=damage.append)]


def test_streams_are_read_one_by_one_and_from_an_index(tmp_path):
    path, index = tmp_path / "dump.xml.bz2", tmp_path / "index.txt.bz2"
    parts = [bz2.compress(part.encode()) for part in (HEAD, "".join(MADE[:3]), "".join(MADE[3:]), TAIL)]
    path.write_bytes(b"".join(parts))
    starts = [0, len(parts[0]), len(parts[0] + parts[1])]
    index.write_bytes(bz2.compress("".join(f"{start}:1:A: title\n" for start in starts[1:] * 2).encode()))
    assert streams(path, index) == [*starts, path.stat().st_size]
    assert streams(path) == [*starts, len(b"".join(parts[:3])), path.stat().st_size]
    assert titles(path, none := []) == ["T1", "T2", "T3", "T4", "T5", "T6"]
    assert not none

    broken = parts[1][:40] + b"garbage!" + parts[1][48:]
    path.write_bytes(b"".join([parts[0], broken, *parts[2:]]))
    assert titles(path, damage := []) == ["T4", "T5", "T6"]  # what is damaged ends at the next stream
    assert "compression is broken" in damage[0]

    index.write_text("nonsense\n")
    with pytest.raises(CorpusError, match="line 1 is not offset:page:title"):
        streams(path, index.rename(tmp_path / "index.txt"))
    (tmp_path / "index.txt").write_text("17:1:A\n")
    with pytest.raises(CorpusError, match="begins at byte 17, and none does: it is another"):
        streams(path, tmp_path / "index.txt")

    text = HEAD + "".join(MADE) + TAIL  # streams that begin in the midst of a page are no streams of pages
    path.write_bytes(bz2.compress(text[:200].encode()) + bz2.compress(text[200:].encode()))
    assert streams(path) == [0, path.stat().st_size]
    assert len(titles(path, [])) == 6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (MADE[2].replace("<ns>0</ns>", "<ns>talk</ns>"), "<ns> 'talk', which is no number"),
        (MADE[2].replace("<ns>0</ns>", ""), "<ns> '', which is no number"),
        (MADE[2].replace("<id>3</id>", "<id>3.5</id>"), "<id> '3.5'"),
        (MADE[2].replace("text 3", "a < b"), "not XML"),
        (MADE[2].replace("</page>", ""), "a page without an end"),
        (MADE[2].replace("<page>", ""), "a page without a beginning"),
    ],
)
def test_one_bad_page_does_no_harm_to_the_others(bad, message, tmp_path):
    path = tmp_path / "dump.xml.gz"
    path.write_bytes(gzip.compress((HEAD + "".join([*MADE[:2], bad, *MADE[3:]]) + TAIL).encode()))
    found = titles(path, damage := [])
    assert found == ["T1", "T2", "T4", "T5", "T6"]
    assert len(damage) == 1
    assert message in damage[0]


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    path = tmp_path / "dump.xml"
    bad = MADE[2].encode().replace(b"text 3", b"a\xff\xfeb\x00c\x0bd \xe4\xb8")
    path.write_bytes(b"".join([HEAD.encode(), bad, TAIL.encode()]))
    assert [page.wikitext for page in pages(path)] == ["a\ufffd\ufffdb c d \ufffd"]


def test_a_page_of_fifty_megabytes(tmp_path):
    path = tmp_path / "dump.xml"
    huge = MADE[0].replace("text 1", "[[a|b]] {{c|" * 4_200_000)
    path.write_text(HEAD + huge + MADE[1] + TAIL, encoding="utf-8")
    first, second = pages(path)
    assert (len(first.wikitext), second.title) == (50_400_000, "T2")
