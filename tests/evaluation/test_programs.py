"""pass@k, held against drawing every set of attempts, and against the formula in whole numbers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from llm_core.evaluation.bootstrap import bootstrap_interval
from llm_core.evaluation.programs import mean_pass_at, pass_at


def test_pass_at_k_is_the_share_of_draws_with_one_that_passed():
    for n in range(1, 9):
        for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
            assert pass_at(k, correct, n) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


@pytest.mark.parametrize("n", [200, 1000, 5000])
def test_it_is_exact_where_binomials_overflow(n):
    """C(5000, 2500) has 1504 digits."""
    for correct, k in itertools.product((0, 1, 2, n // 3, n // 2, n - 1, n), (1, 2, 10, n // 2, n - 1, n)):
        exact = 1 - Fraction(math.comb(n - correct, k), math.comb(n, k))
        assert pass_at(k, correct, n) == pytest.approx(float(exact), rel=1e-12)


def test_a_small_chance_keeps_its_digits():
    assert pass_at(1, 1, 10**15) == pytest.approx(1e-15, rel=1e-12, abs=0)
    assert math.copysign(1, pass_at(3, 0, 10)) == 1


def test_the_estimate_has_no_bias():
    """Its mean over the number that pass among n = 6 attempts is the chance that one of k new ones passes."""
    p, n = Fraction(3, 10), 6
    for k in range(1, n + 1):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = math.fsum(float(chance) * pass_at(k, c, n) for c, chance in enumerate(chances))
        assert mean == pytest.approx(float(1 - (1 - p) ** k))


def test_the_mean_over_problems_and_its_interval():
    correct, n = [0, 1, 4, 10], [10, 10, 5, 10]
    scores = torch.tensor([pass_at(3, c, tries) for c, tries in zip(correct, n, strict=True)], dtype=torch.float64)
    assert mean_pass_at(3, correct, n) == pytest.approx(float(scores.mean()))
    assert mean_pass_at(3, [0, 1], 10) == pytest.approx(0.15)
    interval = bootstrap_interval(torch.mean, scores, n_resamples=200, generator=torch.Generator().manual_seed(0))
    assert interval.low < interval.estimate == pytest.approx(mean_pass_at(3, correct, n))


@pytest.mark.parametrize(
    ("k", "correct", "n", "message"),
    [
        (5, [1], 4, "at least k attempts.*k=5, n=4"),
        (0, [1], 4, "k=0"),
        (1, [5], 4, "got correct=5"),
        (1, [-1], 4, "got correct=-1"),
        (1, [], 4, "got none"),
        (1, [1, 2], [4], "correct of 2 and n of 1 problems"),
    ],
)
def test_what_cannot_be_is_refused(k, correct, n, message):
    with pytest.raises(ValueError, match=message):
        mean_pass_at(k, correct, n)
