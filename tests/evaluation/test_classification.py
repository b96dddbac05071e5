"""Scores of labels against scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics

from llm_core.evaluation.classification import (
    Scores,
    accuracy,
    classification_report,
    confusion_matrix,
    matthews_correlation,
    roc_auc,
)


def draw(n: int, n_classes: int, seed: int = 0):
    """Labels and guesses, half of them right, with rare classes; one class is never called."""
    rng = np.random.default_rng(seed)
    expected = np.minimum(rng.geometric(0.4, n) - 1, n_classes - 1)
    predicted = np.where(rng.random(n) < 0.5, expected, rng.integers(0, max(1, n_classes - 1), n))
    return expected, predicted


CASES = [draw(n, c, seed) for seed, (n, c) in enumerate([(1, 1), (2, 2), (50, 2), (300, 3), (300, 7), (10, 9)])]


@pytest.mark.parametrize(("expected", "predicted"), CASES)
def test_equals_scikit_learn(expected, predicted):
    assert accuracy(expected, predicted) == pytest.approx(metrics.accuracy_score(expected, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about single classes
        matrix = metrics.confusion_matrix(expected, predicted)
        matthews = metrics.matthews_corrcoef(expected, predicted)
    assert confusion_matrix(expected, predicted).tolist() == matrix.tolist()
    assert matthews_correlation(expected, predicted) == pytest.approx(matthews)


def as_sklearn(expected, predicted, **options):
    return metrics.precision_recall_fscore_support(expected, predicted, zero_division=0, **options)


@pytest.mark.parametrize("classes", [None, list(range(12))])
@pytest.mark.parametrize(("expected", "predicted"), CASES)
def test_reports_equal_scikit_learn(expected, predicted, classes):
    report = classification_report(expected, predicted, classes=classes)
    rows = list(zip(*as_sklearn(expected, predicted, labels=classes), strict=True))
    assert len(rows) == len(report.per_class)
    for scores, row in zip(report.per_class.values(), rows, strict=True):
        assert [scores.precision, scores.recall, scores.f1, scores.support] == pytest.approx([float(x) for x in row])
    for name in ("micro", "macro", "weighted"):
        scores = getattr(report, name)
        expect = as_sklearn(expected, predicted, labels=classes, average=name)[:3]
        assert [scores.precision, scores.recall, scores.f1] == pytest.approx([float(x) for x in expect])
        assert scores.support == len(expected)


def test_a_class_is_found_by_its_name():
    report = classification_report(["spam", "ham", "ham"], ["spam", "spam", "ham"])
    assert list(report.per_class) == ["ham", "spam"]
    assert report.per_class["ham"] == Scores(precision=1.0, recall=0.5, f1=2 / 3, support=2)
    matrix = confusion_matrix(["spam", "ham", "ham"], ["spam", "spam", "ham"], classes=["spam", "ham"])
    assert matrix.tolist() == [[1, 0], [1, 1]]


def test_tensors_arrays_and_lists_are_the_same_labels():
    expected, predicted = draw(40, 4)
    matrix = confusion_matrix(expected, predicted)
    assert torch.equal(confusion_matrix(torch.tensor(expected), torch.tensor(predicted)), matrix)
    assert torch.equal(confusion_matrix(expected.tolist(), torch.tensor(predicted)), matrix)
    assert accuracy(torch.tensor(expected), predicted) == accuracy(expected.tolist(), predicted.tolist())


def test_matthews_correlation_of_a_million_examples_does_not_overflow():
    expected, predicted = np.tile(CASES[4][0], 4000), np.tile(CASES[4][1], 4000)
    assert matthews_correlation(expected, predicted) == pytest.approx(matthews_correlation(*CASES[4]))
    assert matthews_correlation([0, 1, 0, 1], [1, 0, 1, 0]) == -1
    assert matthews_correlation([0, 1, 0, 1], [0, 0, 0, 0]) == 0


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("n", [2, 3, 200])
def test_roc_auc_equals_scikit_learn_with_and_without_ties(levels, n):
    rng = np.random.default_rng(levels + n)
    expected = np.array([0, 1, *rng.integers(0, 2, n - 2)])
    scores = rng.integers(0, levels, n) - 0.5 + 0.3 * (levels > 5) * expected
    theirs = metrics.roc_auc_score(expected, scores)
    assert roc_auc(expected, scores) == pytest.approx(theirs)
    assert roc_auc(torch.tensor(expected).bool(), torch.tensor(scores)) == pytest.approx(theirs)
    assert roc_auc(expected, -scores) == pytest.approx(1 - theirs)


def test_roc_auc_counts_pairs():
    expected, scores = [0, 1, 1, 0, 1], [0.2, 0.2, -math.inf, 0.1, math.inf]
    pairs = [(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i in (1, 2, 4) for j in (0, 3)]
    assert roc_auc(expected, scores) == pytest.approx(sum(pairs) / 6)


@pytest.mark.parametrize("score", [accuracy, confusion_matrix, classification_report, matthews_correlation])
def test_labels_must_come_in_pairs(score):
    with pytest.raises(ValueError, match="3 expected and 2 predicted"):
        score([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="got no labels"):
        score([], [])
    with pytest.raises(ValueError, match=r"one row, \(N,\): got \(2, 3\). Take the argmax"):
        score([0, 1], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got the string 'abc'"):
        score("abc", "abd")
    with pytest.raises(ValueError, match="of one kind") if score is not accuracy else warnings.catch_warnings():
        score([0, "a"], [0, "a"])


def test_classes_must_be_all_of_them_and_once_each():
    with pytest.raises(ValueError, match=r"among the 2 classes.*'2'"):
        confusion_matrix([0, 2], [0, 1], classes=[0, 1])
    with pytest.raises(ValueError, match="got 3 classes, of which 2 differ"):
        classification_report([0, 1], [0, 1], classes=[0, 1, 1])


def test_roc_auc_needs_two_classes_and_numbers():
    with pytest.raises(ValueError, match=r"2 labels and scores \(3,\)"):
        roc_auc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"scores \(2, 2\)"):
        roc_auc([0, 1], torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"0 or 1: got.*'2'"):
        roc_auc([0, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="2 of class 1 and 0 of class 0"):
        roc_auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="0 of class 1 and 0 of class 0"):
        roc_auc([], [])
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        roc_auc([0, 1], [0.1, math.nan])
