"""What people said of words, to judge word vectors by: pairs with a score, and analogies.

The files are in the package gensim, which is not imported for them. Chapter 1.3 uses them.
"""

from __future__ import annotations

from llm_core.data.corpora import CorpusError, load_text

PAIRS = ("wordsim353", "simlex999")


def word_pairs(name: str) -> list[tuple[str, str, float]]:
    """The pairs of words of a set, each with the mean of people's scores from 0 to 10, in the order of the file.

    wordsim353 (Finkelstein et al. 2002) asked how related two words are, simlex999 (Hill et al. 2015) how similar:
    "coffee" and "cup" are related and not similar. Words are written as in the file, some with capitals.

    Args:
        name: "wordsim353" or "simlex999".

    Raises:
        CorpusError: there is no such set, or see `corpus_path`.

    >>> word_pairs("wordsim353")[1]
    ('tiger', 'cat', 7.35)
    """
    if name not in PAIRS:
        raise CorpusError(f"there is no set of pairs {name!r}: there are {', '.join(PAIRS)}")
    lines = (line.split("\t") for line in load_text(name).splitlines() if not line.startswith("#"))
    return [(first, second, float(score)) for first, second, score in lines]


def analogies() -> dict[str, list[tuple[str, str, str, str]]]:
    """The 19,544 analogies of Mikolov et al. (2013) by section: a is to b as c is to d.

    The names of nine sections begin with "gram": they ask for a form of a word, the five others for a fact.

    Raises:
        CorpusError: see `corpus_path`.

    >>> analogies()["family"][0]
    ('boy', 'girl', 'brother', 'sister')
    """
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for line in load_text("questions-words").splitlines():
        if line.startswith(": "):
            section = sections.setdefault(line[2:], [])
        else:
            a, b, c, d = line.split()
            section.append((a, b, c, d))
    return sections
