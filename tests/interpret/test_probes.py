"""Probes are scikit-learn's logistic regression, to many digits; the control task is what it says."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from llm_core.interpret.probes import (
    LabelledTokens,
    NotConverged,
    Probe,
    control_labels,
    fit_probe,
    probe_with_control,
)


def data(N=200, D=6, C=4, seed=0, scale=1.0, noise=1.0):
    """Points around C centres, in columns of very unequal size and away from zero."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (N,), generator=generator)
    centres = torch.randn(C, D, generator=generator)
    x = centres[labels] + noise * torch.randn(N, D, generator=generator)
    sizes = torch.logspace(-1, 1, D) if scale == 1.0 else torch.full((D,), scale)
    return x * sizes + 3.0, labels


def sklearn_fit(x, labels, C, solver="newton-cholesky"):
    """newton-cholesky: another method than ours, to the same minimum."""
    return LogisticRegression(C=C, solver=solver, tol=1e-10, max_iter=10_000).fit(x.double(), labels)


@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("C", [3, 4])
def test_three_classes_or_more_are_sklearns_with_c_of_one_over_n_l2(C, l2):
    x, labels = data(C=C)
    probe = fit_probe(x, labels, l2=l2)
    theirs = sklearn_fit(x, labels, C=1 / (len(x) * l2))
    torch.testing.assert_close(probe.weight, torch.tensor(theirs.coef_), rtol=1e-5, atol=1e-7)
    bias = torch.tensor(theirs.intercept_)
    torch.testing.assert_close(probe.bias, bias - bias.mean(), rtol=1e-5, atol=1e-6)
    held_out, expected = data(N=100, C=C, seed=1)
    assert probe.predict(held_out).tolist() == theirs.predict(held_out.double()).tolist()
    assert probe.accuracy(held_out, expected) == pytest.approx(theirs.score(held_out.double(), expected))
    p = torch.tensor(theirs.predict_proba(held_out.double()))
    torch.testing.assert_close(probe.log_probabilities(held_out).exp(), p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_two_classes_are_sklearns_with_twice_that_c(l2):
    x, labels = data(C=2)
    probe = fit_probe(x, labels, l2=l2)
    theirs = sklearn_fit(x, labels, C=2 / (len(x) * l2))
    torch.testing.assert_close(probe.weight[1:] - probe.weight[:1], torch.tensor(theirs.coef_), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(probe.bias[1:] - probe.bias[:1], torch.tensor(theirs.intercept_), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.weight.sum(dim=0), torch.zeros(6).double(), rtol=0, atol=1e-9)


def test_separable_classes_converge_too():
    x, labels = data(noise=0.01)
    probe = fit_probe(x, labels, l2=1e-4)
    theirs = sklearn_fit(x, labels, C=1 / (len(x) * 1e-4), solver="lbfgs")
    torch.testing.assert_close(probe.weight, torch.tensor(theirs.coef_), rtol=1e-4, atol=1e-5)
    assert probe.accuracy(x, labels) == 1.0


def test_activations_with_columns_a_thousand_times_larger_converge():
    """As those of GPT-2, where a few columns of the residual stream are far larger than all others."""
    x, labels = data(N=300, D=40, C=5)
    x[:, 7] = x[:, 7] * 300 + 1000
    probe = fit_probe(x, labels, l2=1e-2)
    theirs = sklearn_fit(x, labels, C=1 / (300 * 1e-2))
    torch.testing.assert_close(probe.weight, torch.tensor(theirs.coef_), rtol=1e-4, atol=1e-6)


def test_activations_whose_columns_go_together_converge():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (400,), generator=generator)
    x = 0.3 * torch.randn(6, 48, generator=generator)[labels]
    x += torch.randn(400, 48, generator=generator) @ torch.randn(48, 48, generator=generator) / 48**0.5
    x[:, 3] *= 300
    probe = fit_probe(x, labels, l2=0.1)
    theirs = sklearn_fit(x, labels, C=1 / (400 * 0.1))
    torch.testing.assert_close(probe.weight, torch.tensor(theirs.coef_), rtol=1e-5, atol=1e-7)


def test_more_columns_than_points():
    x, labels = data(N=20, D=60, C=3, scale=1.5)
    probe = fit_probe(x, labels, l2=0.05)
    theirs = sklearn_fit(x, labels, C=1 / (20 * 0.05))
    torch.testing.assert_close(probe.weight, torch.tensor(theirs.coef_), rtol=1e-5, atol=1e-7)


def test_the_same_fit_each_time_in_any_mode_and_dtype():
    x, labels = data()
    first = fit_probe(x, labels, l2=0.1)
    torch.manual_seed(5)
    with torch.no_grad():
        second = fit_probe(x, labels, l2=0.1)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert first.weight.dtype == torch.float64
    assert not first.weight.requires_grad
    low = x.bfloat16().requires_grad_()
    expected = fit_probe(low.detach().double(), labels, l2=0.1)
    torch.testing.assert_close(fit_probe(low, labels, l2=0.1).weight, expected.weight)


def test_labels_may_be_any_numbers_and_a_class_that_never_came_is_never_said():
    x, labels = data(C=3)
    names = torch.tensor([-7, 40, 900])
    probe = fit_probe(x, names[labels], l2=0.1)
    assert probe.classes.tolist() == [-7, 40, 900]
    assert torch.equal(probe.predict(x), names[fit_probe(x, labels, l2=0.1).predict(x)])
    assert probe.accuracy(x[:5], torch.full((5,), 41)) == 0.0


def test_strong_l2_leaves_the_frequencies():
    x, labels = data(C=3)
    probe = fit_probe(x, labels, l2=1e6)
    p = torch.bincount(labels).double() / len(labels)
    torch.testing.assert_close(probe.log_probabilities(x).exp(), p.expand(200, 3), rtol=0, atol=1e-4)


def test_probes_read_any_leading_dimensions():
    probe = Probe(torch.eye(2).double(), torch.zeros(2).double(), torch.tensor([4, 9]))
    x = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])
    assert probe.predict(x).tolist() == [[4, 9]]
    assert probe.accuracy(x, torch.tensor([[4, 4]])) == 0.5
    assert probe.log_probabilities(x)[0, 0].tolist() == pytest.approx([-math.log1p(math.exp(-1)), -1.3132617])


def test_too_few_steps_are_an_error_not_a_probe():
    x, labels = data()
    with pytest.raises(NotConverged, match="after 3 steps the gradient is"):
        fit_probe(x, labels, l2=1e-3, max_steps=3)


@pytest.mark.parametrize("l2", [0.0, -1.0, math.nan])
def test_a_penalty_is_needed(l2):
    with pytest.raises(ValueError, match="l2 must be above 0"):
        fit_probe(*data(), l2=l2)


def test_what_cannot_be_fitted_is_refused():
    x, labels = data()
    broken = x.clone()
    broken[3, 0], broken[5, 1] = math.inf, math.nan
    with pytest.raises(ValueError, match="every one of 200 labels is 0"):
        fit_probe(x, torch.zeros_like(labels), l2=0.1)
    with pytest.raises(ValueError, match="2 of 1200 numbers of the activations are not finite"):
        fit_probe(broken, labels, l2=0.1)
    with pytest.raises(ValueError, match="there must be labels"):
        fit_probe(x[:0], labels[:0], l2=0.1)
    with pytest.raises(ValueError, match="there must be labels"):
        fit_probe(x, labels, l2=0.1).accuracy(x[:0], labels[:0])


# ---- the control task ----


def test_all_tokens_of_a_type_get_one_control_label():
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(50, (1000,), generator=generator)
    control = control_labels(types, torch.randint(4, (1000,), generator=generator) * 10, generator=generator)
    for token_type in types.unique():
        assert len(control[types == token_type].unique()) == 1
    assert set(control.tolist()) == {0, 10, 20, 30}


def test_control_labels_come_as_often_as_the_labels():
    N = 20_000
    labels = (torch.arange(N) % 10 < 3).long()  # 3 of 10
    control = control_labels(torch.arange(N), labels, generator=torch.Generator().manual_seed(0))
    share = control.double().mean().item()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / N)
    # drawn without a look at the labels of the type itself
    assert abs(control[labels == 1].double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / (0.3 * N))


def test_the_generator_draws_the_control_task():
    types, labels = torch.arange(100), torch.arange(100) % 5
    a, b, c = (control_labels(types, labels, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def tokens(N, *, by_type, seed):
    """Activations that hold the token's type (one column each of 30) or its label (one column each of 3)."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(30, (N,), generator=generator)
    labels = types % 3
    hot = torch.nn.functional.one_hot(types, 30) if by_type else torch.nn.functional.one_hot(labels, 3)
    return LabelledTokens(hot.double() + 0.05 * torch.randn(hot.shape, generator=generator), labels, types)


def test_activations_that_are_the_token_learn_the_control_task_by_heart():
    scores = probe_with_control(
        tokens(600, by_type=True, seed=0),
        tokens(300, by_type=True, seed=1),
        l2=1e-3,
        generator=torch.Generator().manual_seed(0),
    )
    assert (scores.accuracy, scores.control_accuracy, scores.selectivity) == (1.0, 1.0, 0.0)


def test_activations_that_are_the_label_are_selective():
    train, held_out = tokens(600, by_type=False, seed=0), tokens(300, by_type=False, seed=1)
    scores = probe_with_control(train, held_out, l2=1e-3, generator=torch.Generator().manual_seed(0))
    assert scores.accuracy == 1.0
    assert 0 < scores.control_accuracy < 0.7
    assert scores.selectivity == scores.accuracy - scores.control_accuracy
    # The control probe is one on the control labels, the same for a type in both parts.
    control = control_labels(
        torch.cat([train.types, held_out.types]),
        torch.cat([train.labels, held_out.labels]),
        generator=torch.Generator().manual_seed(0),
    )
    theirs = sklearn_fit(train.x, control[:600], C=1 / (600 * 1e-3))
    assert scores.control_accuracy == pytest.approx(theirs.score(held_out.x, control[600:]))


def test_one_label_and_one_type_for_each_activation(unchecked):
    x, labels = data(N=5)
    with pytest.raises(ValueError, match=r"got activations \(5, 6\) and labels \(3,\)"):
        fit_probe(x, labels[2:], l2=0.1)
    with pytest.raises(ValueError, match=r"got activations \(5, 6\) and labels \(4,\)"):
        LabelledTokens(x, labels[1:], labels)
    with pytest.raises(ValueError, match=r"got activations \(5, 6\) and labels \(4,\)"):
        LabelledTokens(x, labels, labels[:4])
