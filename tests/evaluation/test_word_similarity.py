"""Scores of word vectors, held against gensim's and SciPy's."""

import pytest
import scipy.stats
import torch
from gensim.models import KeyedVectors
from gensim.test.utils import datapath

from llm_core.evaluation.word_similarity import answer_analogies, pair_similarities, spearman


def lines_of(name: str) -> list[str]:
    with open(datapath(name), encoding="utf-8") as file:
        return [line for line in file.read().splitlines() if not line.startswith(("#", ":"))]


def vectors_of(words: list[str]) -> tuple[list[str], torch.Tensor]:
    """Half of the words, in lower case, with vectors in which some are alike."""
    some = sorted({word.lower() for word in words})[::2]
    source = torch.Generator().manual_seed(0)
    return some, torch.randn(len(some), 4, generator=source)


def in_gensim(words: list[str], matrix: torch.Tensor) -> KeyedVectors:
    vectors = KeyedVectors(matrix.shape[1])
    vectors.add_vectors(words, matrix.numpy())
    return vectors


@pytest.mark.parametrize("name", ["wordsim353.tsv", "simlex999.txt"])
def test_pairs_score_as_in_gensim(name):
    pairs = [(a, b, float(score)) for a, b, score in (line.split("\t") for line in lines_of(name))]
    words, matrix = vectors_of([word for a, b, _ in pairs for word in (a, b)])
    ours = pair_similarities(words, matrix, pairs)
    _, theirs, left_out = in_gensim(words, matrix).evaluate_word_pairs(datapath(name))
    assert spearman(ours) == pytest.approx(theirs.statistic, abs=1e-6)
    assert len(ours) == round(len(pairs) * (1 - left_out / 100))


def test_analogies_are_answered_as_in_gensim(tmp_path):
    lines = lines_of("questions-words.txt")[::40]
    few = tmp_path / "few.txt"
    few.write_text("\n".join([": some", *lines]), encoding="utf-8")
    words = sorted({word.lower() for line in lines for word in line.split()} - {"paris", "quickly", "dollar"})
    matrix = torch.randn(len(words), 40, generator=torch.Generator().manual_seed(1))
    ids = {word: i for i, word in enumerate(words)}
    for a, b, c, d in (line.lower().split() for line in lines[::3]):  # or none would be right
        if {a, b, c, d} <= ids.keys():
            matrix[ids[d]] = matrix[ids[b]] - matrix[ids[a]] + matrix[ids[c]]
    vectors = in_gensim(words, matrix)
    ours = answer_analogies(words, matrix, [tuple(line.split()) for line in lines])
    for answer in ours[::20]:
        a, b, c, _ = answer.question
        assert answer.word == vectors.most_similar(positive=[b, c], negative=[a], topn=1)[0][0]
    _, sections = vectors.evaluate_word_analogies(str(few), case_insensitive=True)
    right, wrong = sections[0]["correct"], sections[0]["incorrect"]
    assert 0 < len(right) < len(ours) < len(lines)
    assert len(ours) == len(right) + len(wrong)
    assert [answer.question for answer in ours if answer.right] == [tuple(w.lower() for w in q) for q in right]


def test_without_leaving_out_the_question_answers_itself():
    words = ["man", "king", "woman", "queen", "sea"]
    matrix = torch.tensor([[1.0, 0, 0.1], [1, 0.3, 0.1], [0.9, 0, -0.5], [0.3, 0.9, -0.9], [-1, 0, 0]])
    questions = [("man", "king", "woman", "queen")]
    assert answer_analogies(words, matrix, questions)[0].word == "queen"
    assert answer_analogies(words, matrix, questions, leave_out=False)[0].word in ("woman", "king")


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_spearman_is_that_of_scipy_also_with_ties(n):
    source = torch.Generator().manual_seed(n)
    for distinct in (2, 5, 1000):
        pairs = torch.randint(distinct, (n, 2), generator=source).double()
        pairs[:2] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        assert spearman(pairs) == pytest.approx(scipy.stats.spearmanr(*pairs.T.numpy()).statistic)


def test_what_cannot_be_ranked_or_is_unknown_is_said():
    with pytest.raises(ValueError, match="two different numbers"):
        spearman(torch.tensor([[1.0, 2.0], [1.0, 3.0]]))
    with pytest.raises(ValueError, match="two different numbers"):
        spearman(torch.ones(1, 2))
    with pytest.raises(ValueError, match="none of the 1 pairs"):
        pair_similarities(["a"], torch.ones(1, 2), [("a", "b", 1.0)])
    with pytest.raises(ValueError, match="none of the 1 questions"):
        answer_analogies(["a"], torch.ones(1, 2), [("a", "a", "a", "b")])
