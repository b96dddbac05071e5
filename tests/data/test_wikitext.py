"""Plain text of wikitext, held to mwparserfromhell on whole articles, and to paragraphs cleaned by hand."""

from __future__ import annotations

import re
import time
from collections import Counter
from itertools import islice

import mwparserfromhell
import pytest

from llm_core.data.corpora import corpus_path
from llm_core.data.wikipedia import pages
from llm_core.data.wikitext import plain_text, without_templates

GOLD = {  # wikitext -> what a reader reads
    "bold, links, conversions, references": (
        "'''Aardvark''' ({{IPAc-en|ˈ|ɑː|r}}; ''Orycteropus afer'') is a [[burrow]]ing, [[nocturnal animal|nocturnal]] "
        "mammal of {{convert|60|to|80|kg|lb}}.<ref name=\"a\">{{cite book|B}}</ref><ref name='a' /> It eats ants.",
        "Aardvark (Orycteropus afer) is a burrowing, nocturnal mammal of 60 to 80 kg. It eats ants.",
    ),
    "pictures with links in their captions": (
        "Before. [[File:A.jpg|thumb|200px|An [[abacus|old [[thing]]]], {{circa|1900}}]][[Image:b.png]]After.",
        "Before. After.",
    ),
    "a table with templates and a table inside": (
        'One.\n{| class="wikitable"\n! {{a|}}\n|-\n| b\n{|\n| c\n|}\n|}\nTwo.',
        "One.\nTwo.",
    ),
    "headings and lists": (
        "==History==\n* first\n** ''second''\n# [http://x.org a site]\n: indented\n===  Later ===\nText.",
        "History\nfirst\nsecond\na site\nindented\nLater\nText.",
    ),
    "entities, literal text, tags": (
        "5&nbsp;&lt; 6 &mdash; <nowiki>[[not a link]]</nowiki> H<sub>2</sub>O<br />a<!-- [[gone]] -->b <foo> x<y",
        "5 < 6 — [[not a link]] H2O\nab <foo> x<y",
    ),
    "categories, languages, magic words": (
        "Text.__NOTOC__ [[:Category:Seen]]\n[[Category:Hidden|x]]\n[[de:Fremd]]\n[[fr:Seen|so]]\n{{DEFAULTSORT:X}}",
        "Text. Category:Seen\nso",
    ),
    "Chinese": (
        "'''算盤'''（{{lang|ja|そろばん}}）是一種[[計算機|計算工具]]。[[文件:算盘.jpg|thumb|[[算盘]]]]-{zh-hans:软件;zh-hant:軟體}-很重要。"
        "<ref>{{cite web}}</ref>\n[[分类:数学]]",
        "算盤（そろばん）是一種計算工具。软件很重要。",
    ),
    "brackets without partners": ("a }} b ]] c [[d|e {{f [[g]] |} h", "a }} b ]] c [[d|e {{f g |} h"),
    "a comment and a reference without an end": ("a<ref>b <!-- c [[d]]", "ab"),
    "an argument of a template": ("a {{{1|b}}} c{{d|{{{e}}}}}", "a c"),
}


@pytest.mark.parametrize("case", GOLD)
def test_paragraphs_cleaned_by_hand(case):
    wikitext, text = GOLD[case]
    assert plain_text(wikitext) == text


def test_the_words_are_those_that_mwparserfromhell_finds():
    """Without what it keeps and nobody reads as text: references, tables, pictures with their captions, categories."""
    of_both, ours, theirs = 0, 0, 0
    for page in islice(pages(corpus_path("wikipedia-sample")), 0, None, 3):
        if page.redirect is None and page.namespace == 0:
            found, expected = words(plain_text(page.wikitext)), words(by_mwparserfromhell(page.wikitext))
            of_both += (found & expected).total()
            ours, theirs = ours + found.total(), theirs + expected.total()
    f1 = 2 * of_both / (ours + theirs)
    assert f1 > 0.985
    assert of_both / theirs > 0.995  # what we have more is quotations and conversions, which it drops


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def by_mwparserfromhell(wikitext: str) -> str:
    code = mwparserfromhell.parse(wikitext)
    unwanted = code.filter_tags(matches=lambda tag: str(tag.tag).lower() in ("ref", "table"))
    unwanted += code.filter_wikilinks(
        matches=lambda link: re.match(r"\s*(file|image|category):", str(link.title), re.I)
    )
    for node in unwanted:
        if code.contains(node):  # and not inside of another that is gone
            code.remove(node)
    return str(code.strip_code())


def test_no_markup_is_left_in_whole_articles():
    for page in pages(corpus_path("wikipedia-sample")):
        if page.redirect is None and page.namespace == 0 and page.title != "ASCII":  # which is about such signs
            text = plain_text(page.wikitext)
            assert not re.search(r"\{\{|\}\}|\[\[|\]\]|'''|<ref|<!--|&nbsp;|__NOTOC", text), page.title


UNCLOSED = [
    "{{",
    "[[",
    "<ref>",
    "<!--",
    "<nowiki>",
    "\n{|",
    "-{",
    "[http://a ",
    "[http:",
    "'",
    "(",
    "a{{b|",
    "}}]]",
    "\n= =",
]


@pytest.mark.parametrize("pattern", UNCLOSED)
def test_the_time_grows_with_the_length(pattern):
    """Brackets that never close. A pass that looks at the rest of the text for each of them would take minutes."""
    start = time.process_time()
    plain_text(pattern * 50_000)
    assert time.process_time() - start < 5


def test_templates_alone():
    assert without_templates("a {{b|{{c}}|d}} e }} {{f") == "a  e }} {{f"
    deep = "{{a" * 2000 + "}}" * 2000
    assert (without_templates(deep), plain_text(deep)) == ("", "")
