"""Classification: how often is the label right, and which labels are taken for which?

    confusion matrix   C[i, j]: so many examples of class i were called j
    precision of i     of those that were called i, the share that is i     C[i, i] / column sum
    recall of i        of those that are i, the share that was called i     C[i, i] / row sum
    F1 of i            their harmonic mean                                  2 C[i, i] / (row sum + column sum)

Many classes make one number in three ways. Macro is the mean over the classes: a rare class counts as much as a common
one. Weighted is the same mean with each class weighted by its number of examples. Micro adds up the counts first; where
each example has one label and gets one, it is the accuracy three times.

A share of nothing (0 / 0) is 0: a class that never comes has recall 0, one that is never called has precision 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Labels = Sequence[Any] | np.ndarray | Tensor  # whole numbers or strings, one an example


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, and `support`: over how many examples that are of the class (or classes)."""

    precision: float
    recall: float
    f1: float
    support: int

    @classmethod
    def of_counts(cls, correct: int, called: int, actual: int) -> Scores:
        """From how many are right, how many were called so, and how many are so.

        >>> Scores.of_counts(correct=1, called=2, actual=4)
        Scores(precision=0.5, recall=0.25, f1=0.3333333333333333, support=4)
        """
        f1 = share(2 * correct, called + actual)
        return cls(precision=share(correct, called), recall=share(correct, actual), f1=f1, support=actual)


@dataclass(frozen=True)
class Report:
    """Scores of each class, and the three ways to make them one number."""

    per_class: Mapping[Hashable, Scores]
    micro: Scores
    macro: Scores
    weighted: Scores

    @classmethod
    def of_counts(cls, counts: Mapping[Any, tuple[int, int, int]]) -> Report:
        """From (correct, called, actual) of each class."""
        per_class = {label: Scores.of_counts(*count) for label, count in counts.items()}
        correct, called, actual = (sum(count[i] for count in counts.values()) for i in range(3))
        return cls(
            per_class=per_class,
            micro=Scores.of_counts(correct, called, actual),
            macro=_mean(list(per_class.values()), [1] * len(per_class)),
            weighted=_mean(list(per_class.values()), [scores.support for scores in per_class.values()]),
        )


def accuracy(expected: Labels, predicted: Labels) -> float:
    """The share of examples whose label is right.

    Raises:
        ValueError: the numbers of labels differ, there are none, or they are not one row of labels.

    >>> accuracy(["cat", "dog", "dog"], ["cat", "dog", "cat"])
    0.6666666666666666
    """
    pairs = _pairs(expected, predicted)
    return sum(a == b for a, b in pairs) / len(pairs)


def confusion_matrix(
    expected: Labels, predicted: Labels, *, classes: Sequence[Hashable] | None = None
) -> Int[Tensor, "C C"]:
    """How many examples of each class (row) were called which class (column).

    Args:
        expected: the labels that are right, (N,).
        predicted: the labels that were given, (N,).
        classes: the rows' and columns' order; all labels that come, sorted, unless given.

    Raises:
        ValueError: as `accuracy`; or a label is not among the classes, or a class is named twice.
    """
    pairs = _pairs(expected, predicted)
    names = _classes(pairs) if classes is None else list(classes)
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        raise ValueError(f"each class has one row: got {len(names)} classes, of which {len(place)} differ")
    unknown = {label for pair in pairs for label in pair} - place.keys()
    if unknown:
        raise ValueError(f"every label must be among the {len(names)} classes: {sorted(map(repr, unknown))[:5]} is not")
    cells = torch.tensor([place[a] * len(names) + place[b] for a, b in pairs])
    return torch.bincount(cells, minlength=len(names) ** 2).view(len(names), len(names))


def classification_report(expected: Labels, predicted: Labels, *, classes: Sequence[Hashable] | None = None) -> Report:
    """Precision, recall and F1 of each class, and micro, macro and weighted.

    Arguments and errors are those of `confusion_matrix`. A class that is named in `classes` and never comes counts in
    the macro mean, with zeros.
    """
    names = _classes(_pairs(expected, predicted)) if classes is None else list(classes)
    matrix = confusion_matrix(expected, predicted, classes=names)
    counts = zip(matrix.diagonal().tolist(), matrix.sum(dim=0).tolist(), matrix.sum(dim=1).tolist(), strict=True)
    return Report.of_counts(dict(zip(names, counts, strict=True)))


def matthews_correlation(expected: Labels, predicted: Labels) -> float:
    """How labels and predictions go together: 1 always, 0 as by chance, down to -1; for two classes and for more.

    Unlike accuracy it gives nothing for always calling the commonest class. It is 0 where all examples are of one
    class, or are called one.

    Raises:
        ValueError: as `accuracy`.

    Source: Matthews 1975; for more than two classes Gorodkin 2004.
    """
    matrix = confusion_matrix(expected, predicted)
    # Whole numbers of Python, which have no largest: the products below reach n^4.
    n, correct = int(matrix.sum()), int(matrix.diagonal().sum())
    called, actual = matrix.sum(dim=0).tolist(), matrix.sum(dim=1).tolist()
    covariance = n * correct - sum(a * b for a, b in zip(called, actual, strict=True))
    variances = (n**2 - sum(a**2 for a in called)) * (n**2 - sum(b**2 for b in actual))
    return covariance / variances**0.5 if variances else 0.0


def roc_auc(expected: Labels, scores: Sequence[float | int] | np.ndarray | Tensor) -> float:
    """The chance that an example of class 1 has a higher score than one of class 0; a tie counts half.

    This is the area under the curve of recall against the share of false alarms, over all thresholds (Hanley and
    McNeil 1982).

    Args:
        expected: 0 or 1 (or False and True), (N,).
        scores: higher where class 1 is likelier, (N,); any numbers.

    Raises:
        ValueError: the numbers of labels and scores differ, a label is not 0 or 1, a score is not a number, or one of
            the two classes has no example.

    >>> roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    labels, values = _as_list(expected), torch.as_tensor(scores, dtype=torch.float64).cpu()
    if values.shape != (len(labels),):
        raise ValueError(f"each label needs its score: got {len(labels)} labels and scores {tuple(values.shape)}")
    if not set(labels) <= {0, 1}:
        raise ValueError(f"labels must be 0 or 1: got {sorted(map(repr, set(labels)))[:5]}")
    if values.isnan().any():
        raise ValueError(f"scores must be numbers: {int(values.isnan().sum())} of {len(values)} are NaN")
    positive = torch.tensor(labels, dtype=torch.bool)
    n_positive = int(positive.sum())
    n_negative = len(labels) - n_positive
    if not n_positive or not n_negative:
        raise ValueError(f"both classes need an example: got {n_positive} of class 1 and {n_negative} of class 0")
    levels, level = values.unique(return_inverse=True)  # sorted; those that tie share a level
    positives = torch.bincount(level[positive], minlength=len(levels))
    negatives = torch.bincount(level[~positive], minlength=len(levels))
    below = negatives.cumsum(0) - negatives
    return float((positives * (2 * below + negatives)).sum()) / (2 * n_positive * n_negative)


def share(part: int, whole: int) -> float:
    """part / whole; a share of nothing is 0."""
    return part / whole if whole else 0.0


def _mean(scores: list[Scores], weights: list[int]) -> Scores:
    total = sum(weights)

    def mean(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else 0.0

    return Scores(
        precision=mean([s.precision for s in scores]),
        recall=mean([s.recall for s in scores]),
        f1=mean([s.f1 for s in scores]),
        support=sum(s.support for s in scores),
    )


def _classes(pairs: list[tuple[Any, Any]]) -> list[Any]:
    try:
        return sorted({label for pair in pairs for label in pair})
    except TypeError as error:
        raise ValueError(
            f"labels must be of one kind, all numbers or all strings ({error}); or give classes="
        ) from None


def _pairs(expected: Labels, predicted: Labels) -> list[tuple[Any, Any]]:
    right, given = _as_list(expected), _as_list(predicted)
    if len(right) != len(given):
        raise ValueError(f"each example needs both labels: got {len(right)} expected and {len(given)} predicted ones")
    if not right:
        raise ValueError("there is no example to score: got no labels")
    return list(zip(right, given, strict=True))


def _as_list(labels: Labels) -> list[Any]:
    if isinstance(labels, str):
        raise ValueError(f"labels are a sequence, one an example: got the string {labels[:40]!r}")
    if isinstance(labels, np.ndarray | Tensor):
        if labels.ndim != 1:
            raise ValueError(
                f"labels are one row, (N,): got {tuple(labels.shape)}. Take the argmax of logits, leave padding out"
            )
        return list(labels.tolist())
    return list(labels)
