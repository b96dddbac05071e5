"""The bootstrap: how far would a score move if the test set were another one?

    draw n of the n examples, with replacement       a test set that might have been
    compute the statistic on it                      a score that might have been
    again and again                                  between the 2.5 % and the 97.5 % quantile lie 95 % of these

It takes any statistic, also one that is no mean (F1, BLEU, a perplexity). It only knows about the choice of examples,
not about another random seed in training, nor about examples of another kind.

Two systems on the same examples are compared on the same draws: what is hard for both then takes nothing away from the
difference (Koehn 2004).

Source: Efron 1979; Efron and Tibshirani 1993.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Examples = Sequence[Any] | Tensor  # one entry (one row) an example
Statistic = Callable[..., float | int | Tensor]
Draw = Callable[[Sequence[int], torch.Generator | None], list[Tensor]]


@dataclass(frozen=True)
class Interval:
    """A statistic, and between which values it lies in `level` of the draws."""

    estimate: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same examples.

    Attributes:
        a: the statistic of the first system.
        b: that of the second.
        wins: in which share of the draws the first one has the higher statistic.
        ties: in which share both have the same.
        difference: a - b, and its interval.
    """

    a: float
    b: float
    wins: float
    ties: float
    difference: Interval

    @property
    def p_value(self) -> float:
        """In which share of the draws the first system is not better. Koehn 2004: below 0.05 it is, at 95 %."""
        return 1 - self.wins


def together(sizes: Sequence[int], generator: torch.Generator | None) -> list[Tensor]:
    """Draw the same examples of every sample: entry i of one belongs to entry i of the others.

    Raises:
        ValueError: the samples differ in size.
    """
    if len(set(sizes)) > 1:
        raise ValueError(f"samples that are drawn together have an entry for each example: got sizes {list(sizes)}")
    return [torch.randint(sizes[0], (sizes[0],), generator=generator)] * len(sizes)


def apart(sizes: Sequence[int], generator: torch.Generator | None) -> list[Tensor]:
    """Draw each sample's examples for itself: the samples have nothing to do with each other, not even their sizes."""
    return [torch.randint(size, (size,), generator=generator) for size in sizes]


def resampled(
    statistic: Statistic,
    *samples: Examples,
    draw: Draw = together,
    n_resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " R"]:
    """The statistic on R test sets that might have been.

    Args:
        statistic: called with as many samples as are given, drawn anew; gives a number. It sees tensors where tensors
            were given, and lists where other sequences were.
        *samples: examples, (N, ...) tensors or sequences: of expected and predicted labels, for one.
        draw: `together` for samples that belong together entry by entry, `apart` for those that do not.
        n_resamples: R.
        generator: draws the examples, on the CPU.

    Raises:
        ValueError: there is no sample, or an empty one; sizes differ where they must not; or n_resamples is below 1.
    """
    sizes = _check(samples, n_resamples)
    return torch.tensor(
        [
            float(statistic(*(_take(sample, places) for sample, places in zip(samples, drawn, strict=True))))
            for drawn in (draw(sizes, generator) for _ in range(n_resamples))
        ],
        dtype=torch.float64,
    )


def bootstrap_interval(
    statistic: Statistic,
    *samples: Examples,
    level: float = 0.95,
    draw: Draw = together,
    n_resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    """The percentile interval of a statistic: between the (1 - level) / 2 quantiles of the draws at both ends.

    With few examples it is too narrow: a sample of ten knows little about what it has missed. Arguments and errors are
    those of `resampled`.

    Args:
        level: the share of the draws inside the interval, 0 < level < 1.

    >>> bootstrap_interval(lambda x: x.mean(), torch.ones(5))
    Interval(estimate=1.0, low=1.0, high=1.0, level=0.95)
    """
    _check_level(level)
    values = resampled(statistic, *samples, draw=draw, n_resamples=n_resamples, generator=generator)
    return _interval(float(statistic(*samples)), values, level)


def compare_systems(
    statistic: Statistic,
    a: Examples,
    b: Examples,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Comparison:
    """Is system a better than system b, or has it been lucky with the test set? The paired bootstrap.

    Args:
        statistic: of one system, from its examples; higher is better (take the negative of a loss).
        a: what the first system did, one entry an example: its score there, or all that the statistic needs, such as
            (prediction, references) pairs.
        b: what the second one did on the same examples, in the same order.
        level: of the interval of the difference.
        n_resamples: number of draws.
        generator: draws the examples, on the CPU.

    Raises:
        ValueError: the numbers of examples differ, or there are none; n_resamples is below 1, or level is not between 0
            and 1.

    Source: Koehn 2004.
    """
    _check_level(level)
    sizes = _check((a, b), n_resamples)
    values = torch.empty(n_resamples, 2, dtype=torch.float64)
    for i in range(n_resamples):
        places, _ = together(sizes, generator)
        values[i, 0], values[i, 1] = float(statistic(_take(a, places))), float(statistic(_take(b, places)))
    ours, theirs = values.unbind(dim=1)
    score_a, score_b = float(statistic(a)), float(statistic(b))
    return Comparison(
        a=score_a,
        b=score_b,
        wins=float((ours > theirs).double().mean()),
        ties=float((ours == theirs).double().mean()),
        difference=_interval(score_a - score_b, ours - theirs, level),
    )


def _take(sample: Examples, places: Int[Tensor, " N"]) -> Examples:
    if isinstance(sample, Tensor):
        return sample[places.to(sample.device)]
    return [sample[i] for i in places.tolist()]


def _interval(estimate: float, values: Float[Tensor, " R"], level: float) -> Interval:
    low, high = np.quantile(values.numpy(), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(estimate, low, high, level)


def _check(samples: Sequence[Examples], n_resamples: int) -> list[int]:
    sizes = [len(sample) for sample in samples]
    if not sizes or 0 in sizes:
        raise ValueError(f"there is no example to draw: got samples of sizes {sizes}")
    if n_resamples < 1:
        raise ValueError(f"there must be at least one draw: got n_resamples={n_resamples}")
    return sizes


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level is a share of the draws, 0 < level < 1: got {level}")
