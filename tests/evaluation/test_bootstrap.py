"""The bootstrap against scipy's, against all draws there are, and in a simulation where the truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from llm_core.evaluation.bootstrap import (
    Interval,
    apart,
    bootstrap_interval,
    compare_systems,
    resampled,
    together,
)
from llm_core.evaluation.translation import bleu


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).exp()


def correlation(x, y):
    return np.corrcoef(np.asarray(x), np.asarray(y))[0, 1].item()


def gap_of_medians(x, y):
    return float(np.median(np.asarray(x)) - np.median(np.asarray(y)))


CASES = {
    "mean": (lambda x: float(np.mean(np.asarray(x))), [draw(30)], together),
    "correlation": (correlation, [draw(25), draw(25) + draw(25, seed=1)], together),
    "medians": (gap_of_medians, [draw(20), draw(31, seed=1)], apart),
}


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_and_the_interval_are_those_of_scipy(case):
    statistic, samples, draws = CASES[case]
    n = 4000
    ours = resampled(statistic, *samples, draw=draws, n_resamples=n, generator=generator(3)).numpy()
    theirs = stats.bootstrap(
        [sample.numpy() for sample in samples],
        lambda *x, axis=-1: statistic(*x),
        paired=draws is together and len(samples) > 1,
        vectorized=False,
        n_resamples=n,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    # Two samples of one distribution: the Kolmogorov-Smirnov test, at one in a thousand. Seeds are fixed.
    assert stats.ks_2samp(ours, theirs.bootstrap_distribution).pvalue > 1e-3
    interval = bootstrap_interval(statistic, *samples, level=0.9, draw=draws, n_resamples=n, generator=generator(3))
    # The same draws give the quantiles exactly; other draws, within the error of quantiles.
    assert [interval.low, interval.high] == pytest.approx(np.percentile(ours, [5, 95]).tolist())
    spread = 0.1 * ours.std()
    assert interval.low == pytest.approx(theirs.confidence_interval.low, abs=spread)
    assert interval.high == pytest.approx(theirs.confidence_interval.high, abs=spread)
    assert interval.estimate == pytest.approx(statistic(*samples))
    assert interval.level == 0.9


def test_samples_that_belong_together_must_be_drawn_together():
    """Drawn apart, two columns that are the same would seem to have nothing to do with each other."""
    x = draw(40)
    paired = resampled(correlation, x, x, n_resamples=50, generator=generator())
    assert paired.min() > 0.999
    apart_ = resampled(correlation, x, x, draw=apart, n_resamples=50, generator=generator())
    assert apart_.abs().mean() < 0.5


def test_every_example_is_drawn_as_often_and_every_draw_has_as_many():
    counts, g = torch.zeros(7), generator()
    for _ in range(2000):
        (places,) = together([7], g)
        assert places.shape == (7,)
        counts += torch.bincount(places, minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.usefixtures("unchecked")  # quicker
def test_nine_in_ten_intervals_of_90_percent_hold_the_truth():
    """The truth is 0.7; 300 test sets of 100 examples. The limits are 4 standard errors of a share of 300."""
    g, held = generator(), 0
    for _ in range(300):
        right = (torch.rand(100, generator=g) < 0.7).double()
        interval = bootstrap_interval(torch.mean, right, level=0.9, n_resamples=300, generator=g)
        held += interval.low <= 0.7 <= interval.high
    assert abs(held / 300 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 300)


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not():
    def interval(seed):
        return bootstrap_interval(torch.mean, draw(30), n_resamples=100, generator=generator(seed))

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    interval(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wider_level_gives_a_wider_interval_around_the_estimate():
    intervals = [bootstrap_interval(torch.mean, draw(50), level=q, generator=generator()) for q in (0.5, 0.9, 0.99)]
    lows, highs = [i.low for i in intervals], [i.high for i in intervals]
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs)
    assert lows[0] < intervals[0].estimate < highs[0]


def test_one_example_is_always_drawn():
    assert bootstrap_interval(torch.mean, torch.tensor([3.0]), n_resamples=5) == Interval(3.0, 3.0, 3.0, 0.95)


def test_examples_may_be_anything_and_rows_stay_whole():
    pairs = [(["a", "b"], [["a", "b"]]), (["c"], [["d"]]), (["a", "c", "a"], [["a", "c"]])]

    def score(pairs):
        return bleu([p for p, _ in pairs], [r for _, r in pairs], max_n=1).score

    possible = {score([pairs[i] for i in places]) for places in itertools.product(range(3), repeat=3)}
    values = resampled(score, pairs, n_resamples=300, generator=generator())
    assert set(values.tolist()) <= possible
    assert len(set(values.tolist())) > 5
    rows = torch.arange(12).view(6, 2)
    assert (resampled(lambda x: (x[:, 1] - x[:, 0]).double().mean(), rows, n_resamples=20) == 1).all()


# ---- two systems ----


def test_the_comparison_is_that_of_all_draws_there_are():
    """4 examples have 4^4 draws: the shares of wins and ties are known exactly."""
    a, b = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0.0, 0.5, 1.0, 0.0])
    gaps = torch.tensor([(a - b)[list(places)].mean().item() for places in itertools.product(range(4), repeat=4)])
    n = 20_000
    result = compare_systems(torch.mean, a, b, n_resamples=n, generator=generator())
    error = 4 * math.sqrt(0.25 / n)
    assert result.wins == pytest.approx((gaps > 0).double().mean().item(), abs=error)
    assert result.ties == pytest.approx((gaps == 0).double().mean().item(), abs=error)
    assert result.ties > 0.02
    assert result.p_value == pytest.approx(1 - result.wins)
    assert (result.a, result.b) == (pytest.approx(0.625), pytest.approx(0.375))
    assert result.difference.estimate == pytest.approx(0.25)


def test_the_difference_and_its_wins_are_those_of_scipy():
    a = draw(60)
    b = a + 0.3 * draw(60, seed=1) - 0.45
    result = compare_systems(torch.mean, a, b, level=0.9, n_resamples=4000, generator=generator())
    theirs = stats.bootstrap(
        [a.numpy(), b.numpy()],
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    gaps = theirs.bootstrap_distribution
    assert result.wins == pytest.approx((gaps > 0).mean(), abs=0.03)
    assert 0.05 < result.wins < 0.95
    assert result.difference.low == pytest.approx(theirs.confidence_interval.low, abs=0.2 * gaps.std())
    assert result.difference.high == pytest.approx(theirs.confidence_interval.high, abs=0.2 * gaps.std())


def test_what_is_hard_for_both_does_not_hide_a_difference():
    hard = 100 * draw(50)
    result = compare_systems(torch.mean, hard + 1, hard, n_resamples=200, generator=generator())
    assert (result.wins, result.p_value) == (1, 0)
    assert result.difference.low == pytest.approx(1)
    same = compare_systems(torch.mean, hard, hard, n_resamples=50)
    assert (same.wins, same.ties, same.p_value) == (0, 1, 1)


def test_systems_may_be_compared_by_what_is_no_mean():
    references = [[["a", "b", "c"]], [["d", "e"]], [["a", "c"]]]
    a = list(zip([["a", "b", "c"], ["d", "e"], ["a", "c"]], references, strict=True))
    b = list(zip([["a", "x", "c"], ["d", "y"], ["z", "c"]], references, strict=True))

    def score(pairs):
        return bleu([p for p, _ in pairs], [r for _, r in pairs], max_n=1).score

    result = compare_systems(score, a, b, n_resamples=50, generator=generator())
    assert result.a == pytest.approx(100)
    assert result.b == pytest.approx(score(b))
    assert result.wins == 1


# ---- errors ----


@pytest.mark.parametrize("function", [resampled, bootstrap_interval])
def test_there_must_be_examples_and_draws(function):
    with pytest.raises(ValueError, match=r"sizes \[3, 2\]"):
        function(correlation, draw(3), draw(2))
    with pytest.raises(ValueError, match=r"sizes \[3, 0\]"):
        function(correlation, draw(3), [], draw=apart)
    with pytest.raises(ValueError, match=r"sizes \[\]"):
        function(correlation)
    with pytest.raises(ValueError, match="n_resamples=0"):
        function(torch.mean, draw(3), n_resamples=0)


def test_systems_are_compared_on_the_same_examples():
    with pytest.raises(ValueError, match=r"sizes \[3, 2\]"):
        compare_systems(torch.mean, draw(3), draw(2))
    with pytest.raises(ValueError, match=r"sizes \[0, 0\]"):
        compare_systems(torch.mean, [], [])
    with pytest.raises(ValueError, match="n_resamples=0"):
        compare_systems(torch.mean, draw(3), draw(3), n_resamples=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level):
    for call in (bootstrap_interval, compare_systems):
        with pytest.raises(ValueError, match=f"got {level}"):
            call(torch.mean, draw(3), draw(3), level=level)
