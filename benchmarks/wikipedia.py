"""From a dump of Wikipedia to text, beside the libraries that people use: CPU seconds of one process each.

`wikitext` is the cleaning alone: the articles of the book's sample, from wikitext to plain text. They cannot
give the same text, as they differ in what they call text, so each must have found most of the words that
mwparserfromhell finds without its footnotes, tables, pictures and categories; the F1 of this is printed to stderr.

`dump` is the whole way from the compressed file to the words of every article. gensim's WikiCorpus has its two
processes, whose CPU seconds are counted with those of the first.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Callable

from side_by_side import Contender, Turn

CLOCK = "cpu"
WORD = re.compile(r"\w+")


@functools.cache
def texts() -> list[str]:
    from llm_core.data.corpora import corpus_path
    from llm_core.data.wikipedia import pages

    found = pages(corpus_path("wikipedia-sample"))
    return [page.wikitext for page in found if page.namespace == 0 and page.redirect is None]


def words(cleaned: list[str]) -> Counter[str]:
    return Counter(word for text in cleaned for word in WORD.findall(text.lower()))


@functools.cache
def expected() -> Counter[str]:
    """What mwparserfromhell finds when that is out of its tree which nobody reads as text."""
    import mwparserfromhell

    found = []
    hidden = re.compile(r"\s*(file|image|category):", re.IGNORECASE)
    for text in texts():
        tree = mwparserfromhell.parse(text)
        unwanted = tree.filter_tags(matches=lambda tag: str(tag.tag).lower() in ("ref", "table"))
        unwanted += tree.filter_wikilinks(matches=lambda link: hidden.match(str(link.title)))
        for node in unwanted:
            if tree.contains(node):
                tree.remove(node)
        found.append(str(tree.strip_code()))
    return words(found)


def cleaning(clean: Callable[[str], str]) -> Turn:
    """A turn that cleans all articles."""
    found = words([clean(text) for text in texts()])
    f1 = 2 * (found & expected()).total() / (found.total() + expected().total())
    print(f"F1 of the words: {f1:.3f}", file=sys.stderr)
    assert f1 > 0.8, f"this is not the text of these articles: F1 {f1:.2f}"

    def turn() -> None:
        for text in texts():
            clean(text)

    return turn


def ours() -> Turn:
    from llm_core.data.wikitext import plain_text

    return cleaning(plain_text)


def mwparserfromhell() -> Turn:
    import mwparserfromhell

    return cleaning(lambda text: str(mwparserfromhell.parse(text).strip_code()))


def wikitextparser() -> Turn:
    import wikitextparser

    return cleaning(lambda text: wikitextparser.parse(text).plain_text())


def gensim_filter() -> Turn:
    from gensim.corpora.wikicorpus import filter_wiki

    return cleaning(filter_wiki)


def our_dump() -> Turn:
    from llm_core.data.corpora import corpus_path
    from llm_core.data.wikipedia import pages
    from llm_core.data.wikitext import plain_text

    def turn() -> None:
        n_words = 0
        for page in pages(corpus_path("wikipedia-articles")):
            if page.namespace == 0 and page.redirect is None:
                n_words += len(WORD.findall(plain_text(page.wikitext).lower()))
        assert n_words > 400_000

    return turn


def wiki_corpus() -> Turn:
    from gensim.corpora.wikicorpus import WikiCorpus

    from llm_core.data.corpora import corpus_path

    def turn() -> None:
        corpus = WikiCorpus(str(corpus_path("wikipedia-articles")), processes=2, dictionary={}, article_min_tokens=0)
        n_words = sum(len(text) for text in corpus.get_texts())
        assert n_words > 300_000

    return turn


TASKS = {
    "wikitext": {
        "llm_core": Contender(ours),
        "mwparserfromhell": Contender(mwparserfromhell, note="strip_code"),
        "wikitextparser": Contender(wikitextparser, note="plain_text"),
        "gensim": Contender(gensim_filter, note="filter_wiki: regular expressions"),
    },
    "dump": {
        "llm_core": Contender(our_dump, note="one process"),
        "gensim WikiCorpus": Contender(wiki_corpus, note="two processes, the CPU seconds of both"),
    },
}
