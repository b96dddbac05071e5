"""SQuAD's measures, held against what transformers and rouge_score say."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from llm_core.evaluation.bootstrap import bootstrap_interval, compare_systems
from llm_core.evaluation.question_answering import (
    Answered,
    answer_f1,
    exact_match,
    normalise,
    question_answering,
)

# What transformers 4.57 says of these, the last version that has them (transformers.data.metrics.squad_metrics):
# prediction, references, the prediction normalised, exact match, F1.
PUBLISHED = [
    ("Tower,", ["tower"], "tower", 1, 1),
    ("the tower of London", ["Tower of Lon-don", "a tower"], "tower of london", 1, 1),
    ("a tower", ["an tower"], "tower", 1, 1),
    ("", [], "", 1, 1),
    ("the", [], "", 1, 1),
    ("x", [], "x", 0, 0),
    ("", ["tower"], "", 0, 0),
    ("", ["the", "tower"], "", 0, 0),
    ("an.", [""], "", 1, 1),
    ("yes yes yes", ["yes yes no"], "yes yes yes", 0, 2 / 3),
    ("THEN the", ["then"], "then", 1, 1),
    ("thé an", ["thé"], "thé", 1, 1),
    ("a.n example", ["an example", "example"], "example", 1, 1),
    ("the-an x", ["x", "thean x"], "thean x", 1, 1),
    ("塔 tower", ["塔"], "塔 tower", 0, 2 / 3),
    ("'s\u00a0\u2019s", ["s \u2019s"], "s \u2019s", 1, 1),
    ("_ 12", ["12"], "12", 1, 1),
    ("12 \u2014 13", ["12-13", "12 13"], "12 \u2014 13", 0, 0.8),
    ("İ", ["i"], "i\u0307", 0, 0),
    ("STRASSE", ["straße"], "strasse", 0, 0),
    ("no", ["yes", "no way", "of no use"], "no", 0, 2 / 3),
]


@pytest.mark.parametrize(("prediction", "references", "normalised", "exact", "f1"), PUBLISHED)
def test_an_answer_scores_as_in_transformers(prediction, references, normalised, exact, f1):
    assert normalise(prediction) == normalised
    assert exact_match(prediction, references) == exact
    assert answer_f1(prediction, references) == pytest.approx(f1)


def test_f1_is_that_of_single_words_in_rouge():
    scorer = RougeScorer(["rouge1"], tokenizer=SimpleNamespace(tokenize=lambda text: normalise(text).split()))
    rng = random.Random(0)
    for _ in range(500):
        prediction, *references = (" ".join(rng.choices(["the", "old", "Tower,", "of", "x"], k=5)) for _ in range(4))
        theirs = max(scorer.score(reference, prediction)["rouge1"].fmeasure for reference in references)
        assert answer_f1(prediction, references) == pytest.approx(theirs)


def test_means_over_all_questions_and_over_those_with_and_without_answer():
    scores = question_answering([case[0] for case in PUBLISHED], [case[1] for case in PUBLISHED])
    without = [case for case in PUBLISHED if not any(map(normalise, case[1]))]
    for mean, cases in (
        (scores.all, PUBLISHED),
        (scores.without_answer, without),
        (scores.with_answer, [case for case in PUBLISHED if case not in without]),
    ):
        assert mean.n == len(cases) > 3
        assert mean.exact_match == pytest.approx(sum(case[3] for case in cases) / len(cases))
        assert mean.f1 == pytest.approx(sum(case[4] for case in cases) / len(cases))


def test_a_word_counts_as_often_as_both_have_it():
    assert answer_f1("yes yes yes", ["yes yes no"]) == pytest.approx(2 / 3)
    assert answer_f1("no", ["yes", "no way"]) == pytest.approx(2 / 3)


def test_no_answer_is_an_answer():
    assert exact_match("", []) == answer_f1("", []) == exact_match("the", []) == 1
    assert exact_match("something", []) == answer_f1("something", []) == 0
    assert exact_match("", ["tower"]) == answer_f1("", ["tower"]) == 0
    assert exact_match("", ["the", "tower"]) == 0  # an answer that can be found counts
    scores = question_answering(["tower"], [["Tower"]])
    assert scores.without_answer.n == 0
    assert math.isnan(scores.without_answer.f1)
    assert scores.all == scores.with_answer == Answered(1.0, 1.0, 1)


def test_the_bootstrap_takes_the_scores_of_each_question():
    predictions, references = ["tower", "bridge", ""] * 10, [["tower"], ["the river"], []] * 10
    scores = torch.tensor([answer_f1(p, r) for p, r in zip(predictions, references, strict=True)])
    interval = bootstrap_interval(torch.mean, scores, n_resamples=200, generator=torch.Generator().manual_seed(0))
    assert interval.low < interval.estimate == pytest.approx(question_answering(predictions, references).all.f1)
    assert interval.high > interval.estimate
    assert compare_systems(torch.mean, scores + 1, scores, n_resamples=50).wins == 1


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["tower"], "got the string 'tower'"),
        ("tower", [["tower"]], "Put it into a list"),
        (["a", "b"], [["a"]], "2 predictions and the references of 1"),
        ([], [], "got none"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        question_answering(predictions, references)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("prediction", "references"), [(None, ["a"]), ("a", [3]), ("a", ["a", None])])
def test_an_answer_is_a_text(prediction, references):
    for score in (exact_match, answer_f1):
        with pytest.raises(ValueError, match=r"an answer is a text, .*: got (None|3)"):
            score(prediction, references)
