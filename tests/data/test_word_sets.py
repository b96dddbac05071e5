"""The sets of words, held to what gensim reads from the same files, and to what their papers say of them."""

from __future__ import annotations

import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath

from llm_core.data.corpora import CorpusError
from llm_core.data.word_sets import PAIRS, analogies, word_pairs


@pytest.mark.parametrize(("name", "number"), [("wordsim353", 353), ("simlex999", 999)])
def test_pairs_have_scores_from_0_to_10(name, number):
    pairs = word_pairs(name)
    assert len(pairs) == number
    assert all(0 <= score <= 10 and first and second for first, second, score in pairs)


def test_related_is_not_similar():
    """The example of Hill et al. (2015): coffee and cup go together, and are not alike."""
    scores = {name: {frozenset(pair): score for *pair, score in word_pairs(name)} for name in PAIRS}
    assert scores["wordsim353"][frozenset(("cup", "coffee"))] > 6 > 5
    assert scores["simlex999"][frozenset(("old", "new"))] < 2
    assert scores["simlex999"][frozenset(("smart", "intelligent"))] > 9


def test_every_pair_and_analogy_is_one_that_gensim_reads():
    """gensim skips what has a word it does not know: a model that knows all words counts all lines."""
    sections = analogies()
    words = {word for section in sections.values() for analogy in section for word in analogy}
    vectors = KeyedVectors(vector_size=2)
    vectors.add_vectors(sorted(words), [[1.0, k] for k in range(len(words))])
    read = vectors.evaluate_word_analogies(datapath("questions-words.txt"), case_insensitive=False)[1]
    counted = {section["section"]: len(section["correct"] + section["incorrect"]) for section in read[:-1]}
    assert counted == {name: len(section) for name, section in sections.items()}
    assert sum(counted.values()) == 19_544
    assert len(sections) == 14


def test_a_set_that_is_none_comes_with_those_that_are():
    with pytest.raises(CorpusError, match="no set of pairs 'men': there are wordsim353, simlex999"):
        word_pairs("men")
