"""Calibration: when a model says 80 %, is it right in 80 of 100 cases?

    reliability table    examples by confidence, in bins: mean confidence beside the share that is right
    calibration error    mean over the examples of |confidence - share right| of their bins        (ECE)
    Brier score          mean squared distance between the probabilities and what came
    temperature          softmax(logits / T): T > 1 makes the model less sure, its answers stay as they are

Networks tend to be too sure of themselves (Guo et al. 2017). One number T, fitted on examples that were held out,
repairs most of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# How far from one a row may sum up. bfloat16 moves each probability by at most 2^-9 of itself, and so their sum.
TOLERANCE = 2**-8


@runtime_checkable
class Bins(Protocol):
    """Where one bin of confidences ends and the next begins."""

    def edges(self, confidence: Float[Tensor, " N"]) -> Float[Tensor, " M1"]:
        """The edges of M bins, M + 1 numbers from the lowest to the highest; bin m is (edge m, edge m + 1]."""
        ...


@dataclass(frozen=True)
class EqualWidth:
    """n bins of width 1 / n, as in Guo et al. 2017; most examples tend to lie in the last.

    Raises:
        ValueError: n is below 1.
    """

    n: int = 15

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"there must be at least one bin: got n={self.n}")

    def edges(self, confidence: Float[Tensor, " N"]) -> Float[Tensor, " M1"]:
        """0, 1 / n, 2 / n, ..., 1."""
        return torch.from_numpy(np.linspace(0, 1, self.n + 1))


@dataclass(frozen=True)
class EqualMass:
    """n bins of as many examples each (equal confidences stay in one bin), as in Nixon et al. 2019.

    Raises:
        ValueError: n is below 1.
    """

    n: int = 15

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"there must be at least one bin: got n={self.n}")

    def edges(self, confidence: Float[Tensor, " N"]) -> Float[Tensor, " M1"]:
        """The quantiles of the confidences at 0, 1 / n, 2 / n, ..., 1."""
        # numpy's: torch.quantile takes no more than 16 million numbers.
        return torch.from_numpy(np.quantile(confidence.numpy(), np.linspace(0, 1, self.n + 1)))


@dataclass(frozen=True)
class ReliabilityTable:
    """Confidence beside truth, in M bins; double precision, on the CPU.

    Attributes:
        edges: (M + 1,) where the bins end; bin m is (edges[m], edges[m + 1]], and the first one takes its lower edge.
        counts: (M,) how many examples each bin has.
        confidence: (M,) their mean confidence; NaN in an empty bin.
        accuracy: (M,) the share of them that is right; NaN in an empty bin.
    """

    edges: Float[Tensor, " M1"]
    counts: Int[Tensor, " M"]
    confidence: Float[Tensor, " M"]
    accuracy: Float[Tensor, " M"]

    @property
    def calibration_error(self) -> float:
        """The mean of |confidence - accuracy|, each bin counting with its examples."""
        gap = (self.confidence - self.accuracy).abs().nan_to_num(0.0)
        return float((gap * self.counts).sum() / self.counts.sum())


def reliability_table(
    confidence: Float[Tensor, " ..."], right: Bool[Tensor, " ..."], *, bins: Bins = EqualWidth()
) -> ReliabilityTable:
    """Sort examples into bins by confidence, and look how many of each are right.

    Args:
        confidence: (N,) the probability that was given to an answer (or to class 1).
        right: (N,) whether the answer was right (or the class was 1).
        bins: where the bins end.

    Raises:
        ValueError: the numbers differ, there are none, or a confidence is outside 0 ... 1.
    """
    if confidence.ndim != 1 or confidence.shape != right.shape:
        raise ValueError(
            f"each confidence needs its outcome, both (N,): got {tuple(confidence.shape)} and {tuple(right.shape)}"
        )
    _check_probabilities(confidence)
    values, outcomes = confidence.detach().double().cpu(), right.double().cpu()
    edges = bins.edges(values)
    M = len(edges) - 1
    place = torch.bucketize(values, edges[1:-1].contiguous())
    counts = torch.bincount(place, minlength=M)
    return ReliabilityTable(
        edges=edges,
        counts=counts,
        confidence=torch.bincount(place, values, minlength=M) / counts,  # 0 / 0 is NaN, as promised
        accuracy=torch.bincount(place, outcomes, minlength=M) / counts,
    )


def expected_calibration_error(
    probabilities: Float[Tensor, " ..."], labels: Int[Tensor, " ..."], *, bins: Bins = EqualWidth()
) -> float:
    """The calibration error of the likeliest classes: how far their probabilities are from how often they are right.

    It depends on the bins: say which. A table of all of it is `reliability_table(*top_class(probabilities, labels))`.

    Args:
        probabilities: (N, C), rows sum to one.
        labels: (N,) the class of each example.
        bins: where the bins end.

    Raises:
        ValueError: the shapes do not fit, a row is no probabilities, a label is no class, or there is no example.

    Source: Naeini et al. 2015; Guo et al. 2017, section 2.
    """
    return reliability_table(*top_class(probabilities, labels), bins=bins).calibration_error


def top_class(
    probabilities: Float[Tensor, " ..."], labels: Int[Tensor, " ..."]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """The probability of each example's likeliest class, and whether it is the right one.

    Raises:
        ValueError: as `expected_calibration_error`.
    """
    _check_rows(probabilities, labels)
    confidence, answer = probabilities.max(dim=-1)
    return confidence.clamp(max=1.0), answer == labels  # rows sum to one up to rounding


def brier_score(probabilities: Float[Tensor, " ..."], labels: Int[Tensor, " ..."]) -> float:
    """The mean over the examples of sum_c (p_c - [c is right])^2: 0 is perfect, 2 is sure and wrong.

    Arguments and errors are those of `expected_calibration_error`. With two classes it is twice the (p - y)^2 that is
    also called so.

    Source: Brier 1950.

    >>> brier_score(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
    1.125
    """
    _check_rows(probabilities, labels)
    p = probabilities.detach().double()
    came = torch.zeros_like(p).scatter_(1, labels.long()[:, None], 1.0)
    return float((p - came).square().sum(dim=1).mean())


def fit_temperature(logits: Float[Tensor, " ..."], labels: Int[Tensor, " ..."]) -> float:
    """The temperature T at which softmax(logits / T) makes the labels likeliest.

    Fit it on examples that the model has not learned from, and apply it to others. In b = 1 / T the mean of
    -ln p(label) is convex, with the slope

        mean over the examples of (mean logit under softmax(b logits) - logit of the label)

    so its lowest point is where that slope is zero, and halving finds it.

    Args:
        logits: (N, C).
        labels: (N,).

    Raises:
        ValueError: the shapes do not fit, a logit is not finite, a label is no class, or there is no example; or no T
            is best: the logits say nothing about the labels (ever larger ones are better), or every label has the
            highest logit (ever smaller ones are).

    Source: Guo et al. 2017, section 4.
    """
    _check_shapes(logits, labels)
    if not torch.isfinite(logits).all():
        raise ValueError(f"logits must be finite: {int((~torch.isfinite(logits)).sum())} of {logits.numel()} are not")
    z = logits.detach().double()
    z = z - z.gather(1, labels.long()[:, None])  # how far each class is above the right one
    if _slope(z, 0.0) >= 0:
        raise ValueError("the labels' logits are no higher than the others on average: no temperature is best")
    if float(z.amax(dim=1).mean()) == 0:  # the slope where b is infinite
        raise ValueError(
            "every label has the highest logit, so the colder the better: hold out more, or harder, examples"
        )
    low, high = 0.0, 1.0
    while _slope(z, high) < 0:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):  # until double precision has nothing in between
        low, high = (middle, high) if _slope(z, middle) < 0 else (low, middle)
    return 1 / high


def _slope(above: Float[Tensor, "N C"], b: float) -> float:
    return float(((b * above).softmax(dim=1) * above).sum(dim=1).mean())


def _check_shapes(rows: Tensor, labels: Tensor) -> None:
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"examples are rows, (N, C), with a label each, (N,): got {tuple(rows.shape)} and {tuple(labels.shape)}"
        )
    if rows.numel() == 0:
        raise ValueError(f"there is no example to score: got {tuple(rows.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= rows.shape[1]:
        raise ValueError(
            f"labels must be classes, 0 ... {rows.shape[1] - 1}: got {int(labels.min())} to {int(labels.max())}"
        )


def _check_rows(probabilities: Tensor, labels: Tensor) -> None:
    _check_shapes(probabilities, labels)
    _check_probabilities(probabilities)
    sums = probabilities.detach().double().sum(dim=1)
    worst = float((sums - 1).abs().max())
    if worst > TOLERANCE:
        raise ValueError(
            f"probabilities must sum to one in every row: one is off by {worst:.3g}. Logits want a softmax"
        )


def _check_probabilities(probabilities: Tensor) -> None:
    if probabilities.numel() == 0:
        raise ValueError("there is no example to score: got no probabilities")
    low, high = float(probabilities.min()), float(probabilities.max())
    if not (low >= 0 and high <= 1 + TOLERANCE):  # NaN fails both
        raise ValueError(f"probabilities are 0 ... 1: got {low:.3g} to {high:.3g}")
