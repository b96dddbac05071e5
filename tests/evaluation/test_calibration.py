"""Calibration against scikit-learn's curve and Brier score, and scipy's minimiser."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from llm_core.evaluation.calibration import (
    EqualMass,
    EqualWidth,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability_table,
    top_class,
)


def draw(N: int, C: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are surer than they should be (by a factor of 3), and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, C, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    return 3 * logits, labels


@pytest.mark.parametrize(
    ("bins", "strategy"), [(EqualWidth, "uniform"), (EqualMass, "quantile")], ids=["width", "mass"]
)
@pytest.mark.parametrize("n_bins", [1, 4, 15])
@pytest.mark.parametrize("digits", [1, 2, 15])  # one digit: many ties, and confidences on the edges
def test_the_table_is_the_calibration_curve_of_scikit_learn(bins, strategy, n_bins, digits):
    rng = np.random.default_rng(0)
    # 503 gaps between 504 examples, a prime number: no quantile is an example, where theirs is off by rounding.
    confidence = np.concatenate([[0.0, 1.0], rng.random(502)]).round(digits)
    right = rng.random(504) < confidence**2
    table = reliability_table(torch.tensor(confidence), torch.tensor(right), bins=bins(n_bins))
    accuracy, mean = calibration_curve(right, confidence, n_bins=n_bins, strategy=strategy)
    filled = table.counts > 0  # theirs leaves out empty bins
    np.testing.assert_allclose(table.accuracy[filled], accuracy)
    np.testing.assert_allclose(table.confidence[filled], mean)
    assert int(table.counts.sum()) == 504
    assert len(table.edges) == n_bins + 1
    assert table.accuracy[~filled].isnan().all()
    assert table.confidence[~filled].isnan().all()


def test_an_edge_belongs_to_the_bin_below_it():
    table = reliability_table(torch.tensor([0.0, 0.25, 0.5, 0.51, 1.0]), torch.tensor([True] * 5), bins=EqualWidth(2))
    assert table.counts.tolist() == [3, 2]


def test_bins_of_equal_mass_have_equally_many_examples():
    confidence = torch.rand(997, generator=torch.Generator().manual_seed(0)) ** 8
    counts = reliability_table(confidence, confidence > 0.5, bins=EqualMass(10)).counts
    assert counts.max() - counts.min() <= 1
    assert reliability_table(confidence, confidence > 0.5, bins=EqualWidth(10)).counts.max() > 500


@pytest.mark.parametrize("bins", [EqualWidth(10), EqualMass(7)])
def test_the_calibration_error_is_the_weighted_gap(bins):
    logits, labels = draw(400, 5)
    p = logits.softmax(-1)
    confidence, right = p.amax(-1), p.argmax(-1) == labels
    edges = bins.edges(confidence.double()).tolist()
    expected = 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence.double() > low) & (confidence.double() <= high)
        if i == 0:
            inside |= confidence.double() <= low
        if inside.any():
            gap = confidence[inside].double().mean() - right[inside].double().mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert expected_calibration_error(p, labels, bins=bins) == pytest.approx(expected)
    assert reliability_table(*top_class(p, labels), bins=bins).calibration_error == pytest.approx(expected)
    assert expected > 0.05


def test_a_known_calibration_error():
    # Four answers at 90 %, three right; two at 60 %, one right.
    p = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    assert expected_calibration_error(p, labels) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.1)
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1


@pytest.mark.parametrize("C", [2, 3, 6])
def test_the_brier_score_is_that_of_scikit_learn(C):
    logits, labels = draw(200, C)
    p = logits.double().softmax(-1)
    theirs = brier_score_loss(labels.numpy(), p.numpy(), labels=list(range(C)), scale_by_half=False)
    assert brier_score(p, labels) == pytest.approx(theirs)
    if C == 2:
        assert brier_score(p, labels) == pytest.approx(2 * brier_score_loss(labels.numpy(), p[:, 1].numpy()))


@pytest.mark.parametrize(("N", "C", "factor"), [(2000, 4, 1.0), (300, 2, 0.01), (300, 50, 100.0), (40, 3, 1.0)])
def test_the_temperature_is_where_scipy_finds_the_least_surprise(N, C, factor):
    logits, labels = draw(N, C)
    logits = factor * logits

    def surprise(log_t: float) -> float:
        p = (logits.double() / math.exp(log_t)).softmax(-1)
        return log_loss(labels.numpy(), p.numpy(), labels=list(range(C)))

    around = math.log(3 * factor)
    best = minimize_scalar(surprise, bounds=(around - 3, around + 3), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-4)
    assert surprise(math.log(temperature)) <= best.fun + 1e-12


def test_the_right_temperature_is_found_and_calibrates():
    logits, labels = draw(20_000, 4)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    before = expected_calibration_error(logits.softmax(-1), labels)
    after = expected_calibration_error((logits / temperature).softmax(-1), labels)
    assert before > 0.15
    assert after < 0.02


def test_logits_may_be_shifted_and_huge():
    logits, labels = draw(100, 3)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(fit_temperature(logits.double(), labels), rel=1e-12)  # no precision is lost
    shift = 100 * torch.randn(100, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert fit_temperature(logits.double() + shift, labels) == pytest.approx(temperature, rel=1e-6)
    assert fit_temperature(logits.double() * 1e6, labels) == pytest.approx(temperature * 1e6, rel=1e-6)


def test_where_no_temperature_is_best_it_is_said():
    with pytest.raises(ValueError, match="the colder the better"):
        fit_temperature(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="the colder the better"):
        fit_temperature(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    for logits in ([[1.0, 2.0], [1.0, 3.0]], [[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]):
        with pytest.raises(ValueError, match="no temperature is best"):
            fit_temperature(torch.tensor(logits), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="1 of 2 are not"):
        fit_temperature(torch.tensor([[1.0, math.inf]]), torch.tensor([0]))


@pytest.mark.parametrize("score", [expected_calibration_error, brier_score, fit_temperature, top_class])
def test_examples_must_be_rows_with_a_class_each(score):
    p = torch.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2,\)"):
        score(p, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)"):
        score(p[:, 0], torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"0 \.\.\. 1: got 0 to 2"):
        score(p, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"0 \.\.\. 1: got -1 to 1"):
        score(p, torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match=r"no example to score: got \(0, 2\)"):
        score(p[:0], torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("score", [expected_calibration_error, brier_score, top_class])
def test_probabilities_must_be_probabilities(score):
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"off by 0\.1\. Logits want a softmax"):
        score(torch.tensor([[0.5, 0.5], [0.6, 0.5]]), labels)
    with pytest.raises(ValueError, match=r"off by 0\.2"):
        score(torch.tensor([[0.5, 0.5], [0.3, 0.5]]), labels)
    with pytest.raises(ValueError, match=r"0 \.\.\. 1: got -0\.5 to 1\.5"):
        score(torch.tensor([[1.5, -0.5], [0.5, 0.5]]), labels)
    with pytest.raises(ValueError, match="nan"):
        score(torch.tensor([[math.nan, 0.5], [0.5, 0.5]]), labels)


def test_softmaxes_of_half_precision_are_probabilities():
    logits, labels = draw(500, 30)
    for dtype in (torch.bfloat16, torch.float16):
        p = logits.softmax(-1).to(dtype)
        assert (p.double().sum(-1) - 1).abs().max() > 1e-4
        assert brier_score(p, labels) == pytest.approx(brier_score(logits.softmax(-1), labels), rel=0.01)
        exact = expected_calibration_error(logits.softmax(-1), labels, bins=EqualMass(5))
        assert expected_calibration_error(p, labels, bins=EqualMass(5)) == pytest.approx(exact, abs=0.01)
    p = torch.tensor([[1.003, 0.0]])  # the bins end at 1
    assert expected_calibration_error(p, torch.tensor([0])) == 0


def test_confidences_and_outcomes_go_together():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        reliability_table(torch.rand(3), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 2\)"):
        reliability_table(torch.rand(1, 2), torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match="got no probabilities"):
        reliability_table(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"got 0\.5 to 1\.1"):
        reliability_table(torch.tensor([0.5, 1.1]), torch.tensor([True, False]))
    for bins in (EqualWidth, EqualMass):
        with pytest.raises(ValueError, match="got n=0"):
            bins(0)
