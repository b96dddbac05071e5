"""Cross-entropy against torch's, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from llm_core.training.batches import Batch
from llm_core.training.losses import CrossEntropy, Loss, SoftCrossEntropy, cross_entropy


def draw(batch=3, T=5, V=7):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, T, V, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(1, V, (batch, T), generator=generator)
    targets[1, 3:] = 0  # rows of unequal length
    targets[2, 1:] = 0
    return logits, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("ignore_id", [None, 0, 4])
def test_equals_torch_in_value_and_gradient(smoothing, ignore_id):
    logits, targets = draw()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets, ignore_id=ignore_id, label_smoothing=smoothing)
    expected = F.cross_entropy(
        theirs.flatten(0, 1),
        targets.flatten(),
        ignore_index=-100 if ignore_id is None else ignore_id,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    if ignore_id is not None:
        assert (ours.grad[targets == ignore_id] == 0).all()


def test_every_shape_of_batch():
    logits, targets = draw()
    torch.testing.assert_close(cross_entropy(logits[0], targets[0]), F.cross_entropy(logits[0], targets[0]))
    torch.testing.assert_close(cross_entropy(logits[0, 0], targets[0, 0]), F.cross_entropy(logits[0, 0], targets[0, 0]))


def test_known_answers():
    targets = torch.tensor([[2, 0]])
    assert cross_entropy(torch.zeros(1, 2, 8), targets).item() == pytest.approx(math.log(8))
    logits = torch.tensor([0.5, 0.3, 0.2]).log()[None]
    assert cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(-math.log(0.3))


def test_a_token_counts_the_same_in_a_short_row_and_in_a_long_one():
    logits, targets = draw()
    real = targets != 0
    each = [cross_entropy(a, b).item() for a, b in zip(logits[real], targets[real], strict=True)]
    assert cross_entropy(logits, targets, ignore_id=0).item() == pytest.approx(sum(each) / len(each))


def test_what_is_almost_impossible_does_not_underflow():
    logits = torch.tensor([[0.0, 500.0]])
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(500.0)
    assert cross_entropy(logits * 1000, torch.tensor([0])).item() == pytest.approx(500_000.0)


def test_without_a_target_there_is_no_mean():
    with pytest.raises(ValueError, match="ignore_id=0"):
        cross_entropy(torch.zeros(1, 2, 3), torch.tensor([[0, 0]]), ignore_id=0)
    with pytest.raises(ValueError, match="none came"):
        cross_entropy(torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_label_smoothing_is_a_share(share):
    with pytest.raises(ValueError, match=f"got {share}"):
        cross_entropy(torch.zeros(1, 3), torch.tensor([0]), label_smoothing=share)


def test_logits_in_bf16_have_a_loss_in_float32():
    logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    targets = torch.arange(50) % 11
    ours, theirs = cross_entropy(logits, targets), F.cross_entropy(logits.float(), targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    pair = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("ignore_id", [None, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_total_and_count_are_the_sum_and_the_number_of_which_the_mean_is_made(ignore_id, smoothing):
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 6, 11).double(), torch.randint(5, (2, 6))
    none = -1 if ignore_id is None else ignore_id
    loss, batch = CrossEntropy(ignore_id, smoothing), Batch((logits,), targets)
    total = loss.total(torch.nn.Identity(), batch)
    theirs = F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        reduction="sum",
        label_smoothing=smoothing,
        ignore_index=none,
    )
    torch.testing.assert_close(total, theirs)
    assert isinstance(loss, Loss)
    assert loss.count(batch) == (targets != none).sum()
    mean = cross_entropy(logits, targets, ignore_id=ignore_id, label_smoothing=smoothing)
    torch.testing.assert_close(total / loss.count(batch), mean)


def test_a_batch_in_which_nothing_counts_adds_nothing():
    logits = torch.randn(2, 3, 11, requires_grad=True)
    loss, batch = CrossEntropy(ignore_id=0), Batch((logits,), torch.zeros(2, 3, dtype=torch.long))
    total = loss.total(torch.nn.Identity(), batch)
    total.backward()
    assert total == loss.count(batch) == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_smoothing_that_is_no_share_is_refused_when_the_loss_is_made(share):
    with pytest.raises(ValueError, match=f"label_smoothing is a share, .* got {share}"):
        CrossEntropy(label_smoothing=share)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 6, 11), (1, 1, 11), (3, 2, 1)])
def test_soft_targets_equal_torch_in_value_and_gradient(shape, dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    targets = torch.randn(shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32).softmax(-1)
    loss, batch = SoftCrossEntropy(), Batch((logits,), targets)
    assert isinstance(loss, Loss)
    assert loss.count(batch) == shape[0] * shape[1]
    ours = loss.total(torch.nn.Identity(), batch)
    exact = logits.to(targets.dtype)
    theirs = F.cross_entropy(exact.flatten(0, 1), targets.flatten(0, 1), reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


def test_soft_targets_that_are_sure_are_hard_targets():
    logits, targets = draw()
    sure = F.one_hot(targets, logits.shape[-1]).double()
    soft = SoftCrossEntropy().total(torch.nn.Identity(), Batch((logits,), sure))
    torch.testing.assert_close(soft, CrossEntropy().total(torch.nn.Identity(), Batch((logits,), targets)))


def test_ids_are_no_soft_targets():
    logits, targets = draw()
    with pytest.raises(ValueError, match=r"targets \(3, 5\) for logits \(3, 5, 7\).*CrossEntropy"):
        SoftCrossEntropy().total(torch.nn.Identity(), Batch((logits,), targets))
