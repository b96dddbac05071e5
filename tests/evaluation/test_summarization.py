"""ROUGE by rouge_score, and ROUGE-L written out against it."""

from __future__ import annotations

import difflib
import itertools
import random
import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from llm_core.evaluation.libraries import MissingLibrary
from llm_core.evaluation.summarization import Rouge, common_length, rouge, rouge_l

PREDICTIONS = ["He was running.\nThe gunman killed the police.", "A dog barked", "nothing"]
REFERENCES = ["Police killed the gunman.\nHe ran.", "The dogs barked at a cat.", "something else"]


def is_subsequence(words, text) -> bool:
    rest = iter(text)
    return all(word in rest for word in words)


def test_the_common_length_is_the_longest_subsequence_of_both():
    """Against trying all subsequences."""
    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abc", k=rng.randint(0, 7)) for _ in range(2))
        longest = max(
            n for n in range(len(a) + 1) if any(is_subsequence(words, b) for words in itertools.combinations(a, n))
        )
        assert common_length(a, b) == common_length(b, a) == longest


def test_it_is_not_the_longest_common_run():
    a, b = [*"axbyc"], [*"abc"]
    assert difflib.SequenceMatcher(None, a, b).find_longest_match().size == 1
    assert common_length(a, b) == 3


def test_rouge_l_is_that_of_rouge_score():
    scorer = RougeScorer(["rougeL"])
    rng = random.Random(0)
    for _ in range(500):
        prediction, reference = (rng.choices("abcdef", k=rng.randint(0, 15)) for _ in range(2))
        theirs = scorer.score(" ".join(reference), " ".join(prediction))["rougeL"]
        ours = rouge_l(prediction, reference)
        assert [ours.precision, ours.recall, ours.f1] == pytest.approx(list(theirs))


def test_the_papers_example():
    """Lin 2004, section 3.1: ROUGE-L tells S2 (3 of 4) from S3 (2 of 4), which have the same pairs of words."""
    reference = ["police", "killed", "the", "gunman"]
    assert rouge_l(["police", "kill", "the", "gunman"], reference) == Rouge(0.75, 0.75, 0.75)
    assert rouge_l(["the", "gunman", "kill", "police"], reference) == Rouge(0.5, 0.5, 0.5)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_the_mean_of_rouge_score_over_the_pairs(stem):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem)
    theirs = [scorer.score(r, p) for r, p in zip(REFERENCES, PREDICTIONS, strict=True)]
    ours = rouge(PREDICTIONS, REFERENCES, stem=stem)
    assert list(ours) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for kind, mean in ours.items():
        for i, value in enumerate((mean.precision, mean.recall, mean.f1)):
            assert value == pytest.approx(sum(pair[kind][i] for pair in theirs) / 3)
    assert ours["rouge1"].precision != ours["rouge1"].recall
    assert ours["rougeL"] != ours["rougeLsum"]


def test_stemming_finds_words_with_other_endings():
    assert rouge(["dogs barking"], ["dog barked"])["rouge1"].f1 == 0
    assert rouge(["dogs barking"], ["dogs barked"], stem=True)["rouge1"].f1 == 1


def test_other_scripts_bring_their_own_words():
    with pytest.raises(ValueError, match=r"references \[1\] have no word.*tokenize="):
        rouge(["a", "床前明月光"], ["a", "床前看月光"])
    result = rouge(["床前明月光"], ["床前看月光"], tokenize=list)
    assert result["rouge1"].f1 == pytest.approx(0.8)
    assert result["rougeL"].f1 == pytest.approx(rouge_l("床前明月光", "床前看月光").f1) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="let yours take off the endings"):
        rouge(["a"], ["a"], tokenize=list, stem=True)


def test_a_summary_without_words_scores_nothing():
    assert rouge([""], ["a b"])["rougeL"] == rouge_l([], ["a", "b"]) == Rouge(0.0, 0.0, 0.0)


def test_summaries_need_references():
    with pytest.raises(ValueError, match="2 summaries and 1 references"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="got none"):
        rouge([], [])
    with pytest.raises(ValueError, match="One text goes into a list"):
        rouge("a", "b")


def test_without_rouge_score_the_error_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "rouge_score"]:
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    with pytest.raises(MissingLibrary, match=r'rouge_score: run `pip install "llm-core\[metrics\]"`'):
        rouge(PREDICTIONS, REFERENCES)
    assert rouge_l(["a"], ["a"]).f1 == 1
