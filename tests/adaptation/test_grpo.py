"""GRPO against loops over tokens in NumPy, finite differences and exact sums; and a small model that learns by it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.adaptation.grpo import (
    Clip,
    Group,
    GRPOLoss,
    PerAnswer,
    PerLength,
    PerToken,
    centred_advantages,
    group_advantages,
    grpo_batch,
    grpo_token_losses,
    kl_to_reference,
    token_log_probs,
)
from llm_core.evaluation.programs import mean_pass_at
from llm_core.generation.generate import generate
from llm_core.generation.sampling import Sampler
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.training.losses import Loss
from llm_core.training.masking import IGNORE_ID
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

GROUPS = [
    Group([5, 6], [[7, 8, 9, 2], [9, 2], [2]], [1.0, 0.0, 0.5]),
    Group([5], [[6, 2], [6, 7, 8, 9, 2]], [0.0, 3.0]),
]
AVERAGES = [PerAnswer(), PerToken(), PerLength(7)]


def gpt(seed: int = 0, dropout: float = 0.0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=13, context=16, n_layers=1, n_heads=2, d_model=16, dropout=dropout))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def log_probs_one_by_one(model: nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    ids = prompt + answer
    with torch.no_grad():
        return [
            F.log_softmax(model(torch.tensor([ids[:i]]))[0, -1].double(), dim=-1)[ids[i]].item()
            for i in range(len(prompt), len(ids))
        ]


def by_hand(policy, behaviour, reference, advantages, *, low, high, beta) -> list[list[float]]:
    """The loss of each token of each answer: lists of unequal length, a case for each side of the clip, no minimum."""
    losses = []
    for p_row, b_row, q_row, advantage in zip(policy, behaviour, reference, advantages, strict=True):
        row = []
        for p, b, q in zip(p_row, b_row, q_row, strict=True):
            ratio = math.exp(p) / math.exp(b)
            if advantage >= 0:
                gain = advantage * (ratio if ratio < 1 + high else 1 + high)
            else:
                gain = advantage * (ratio if ratio > 1 - low else 1 - low)
            other = math.exp(q) / math.exp(p)
            row.append(-gain + beta * (other - 1 - math.log(other)))
        losses.append(row)
    return losses


def averaged_by_hand(losses: list[list[float]], average) -> float:
    if isinstance(average, PerAnswer):
        return float(np.mean([np.mean(row) for row in losses]))
    if isinstance(average, PerToken):
        return float(np.mean(np.concatenate(losses)))
    return sum(sum(row) for row in losses) / (average.length * len(losses))


# -- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_are_standard_scores_within_a_group():
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    numbers = rewards.numpy()
    centred = numbers - numbers.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centred_advantages(rewards), centred, rtol=1e-12, atol=1e-12)
    expected = centred / (np.std(numbers, axis=1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards), expected, rtol=1e-12)
    torch.testing.assert_close(group_advantages(100 * rewards + 7), group_advantages(rewards), rtol=1e-3, atol=1e-9)


def test_a_group_that_agrees_teaches_nothing_and_one_alone_cannot_be_compared():
    assert not group_advantages(torch.ones(3, 4)).any()
    for advantages in (group_advantages, centred_advantages):
        with pytest.raises(ValueError, match=r"at least 2 answers to the same prompt.*: got 1"):
            advantages(torch.ones(3, 1))


# -- the estimate of the divergence -----------------------------------------------------------------------------------


def test_the_mean_of_the_estimate_is_the_divergence_and_no_value_is_negative():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    estimates = kl_to_reference(p, q)
    exact = F.kl_div(q, p, log_target=True, reduction="sum")
    torch.testing.assert_close((p.exp() * estimates).sum(), exact)
    assert estimates.min() > 0
    assert (p - q).min() < 0  # what the plain estimate ln p - ln q gives for some tokens
    assert not kl_to_reference(p, p).any()


def test_near_the_reference_the_estimate_varies_less_than_the_plain_one():
    generator = torch.Generator().manual_seed(1)
    logits, step = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    p, q = logits.log_softmax(dim=-1), (logits + 0.1 * step).log_softmax(dim=-1)

    def deviation(values: Tensor) -> float:
        mean = (p.exp() * values).sum()
        return (p.exp() * (values - mean) ** 2).sum().sqrt().item()

    assert deviation(kl_to_reference(p, q)) < deviation(p - q) / 5


# -- the loss of a token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # the slope is that by ln p: -ratio * advantage, or 0 where the clip holds
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # within
        (1.5, 2.0, -2.6, 0.0),  # pushed up far enough: 1.3 * 2
        (0.5, 2.0, -1.0, -1.0),  # has fallen though it was good: it may come back
        (0.5, -2.0, 1.6, 0.0),  # pushed down far enough: 0.8 * 2
        (0.9, -2.0, 1.8, 1.8),
        (1.5, -2.0, 3.0, 3.0),  # has risen though it was bad
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_holds_on_one_side_only(ratio, advantage, loss, slope):
    policy = torch.tensor([[math.log(ratio) - 1]], dtype=torch.float64, requires_grad=True)
    behaviour = torch.full((1, 1), -1.0, dtype=torch.float64)
    worth = torch.tensor([advantage], dtype=torch.float64)
    result = grpo_token_losses(policy, behaviour, worth, clip=Clip(0.2, 0.3))
    assert result.losses.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(result.losses.sum(), [policy])
    assert gradient.item() == pytest.approx(slope)
    assert result.clipped.item() is (slope == 0 and advantage != 0)
    assert result.kl is None


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy = -3 * torch.rand(4, 5, generator=generator, dtype=torch.float64) - 0.5
    behaviour, reference = policy + 0.4 * torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    return policy, behaviour, reference, torch.randn(4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("low", "high", "beta"), [(0.2, 0.2, 0.04), (0.2, 0.28, 0.0), (0.5, 0.1, 1.0)])
def test_losses_are_those_of_a_loop_over_tokens(seed, low, high, beta):
    policy, behaviour, reference, advantages = draw(seed)
    result = grpo_token_losses(policy, behaviour, advantages, reference=reference, clip=Clip(low, high), beta=beta)
    rows = [t.tolist() for t in (policy, behaviour, reference, advantages)]
    np.testing.assert_allclose(result.losses, by_hand(*rows, low=low, high=high, beta=beta), rtol=1e-9)
    assert 0 < result.clipped.double().mean() < 1
    torch.testing.assert_close(result.kl, kl_to_reference(policy, reference))


def test_gradients_equal_finite_differences_and_only_the_policy_has_one():
    policy, behaviour, reference, advantages = (t.requires_grad_() for t in draw())

    def losses(p: Tensor, beta: float) -> Tensor:
        return grpo_token_losses(p, behaviour, advantages, reference=reference, beta=beta).losses

    for beta in (0.0, 0.5):
        assert torch.autograd.gradcheck(losses, [policy, beta])
    losses(policy, 0.5).sum().backward()
    assert policy.grad is not None
    assert all(t.grad is None for t in (behaviour, reference, advantages))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: grpo_token_losses(p, p, p[:, 0], beta=-0.1), "beta must be 0 or above: got -0.1"),
        (lambda p: grpo_token_losses(p, p, p[:, 0], beta=math.nan), "got nan"),
        (lambda p: grpo_token_losses(p, p, p[:, 0], beta=0.1), "beta=0.1 weighs .* there is none"),
        (lambda p: Clip(low=0.0), "0 < low <= 1: got 0.0"),
        (lambda p: Clip(low=1.5), "got 1.5"),
        (lambda p: Clip(high=0.0), "above the ratio 1, above 0: got 0.0"),
        (lambda p: PerLength(0), "length"),
        (lambda p: Group([1], [[2], [3]], [1.0]), "got 2 answers and 1 rewards"),
        (lambda p: Group([], [[2], [3]], [1.0, 0.0]), "the prompt of a group is empty"),
        (lambda p: Group([1], [[2], []], [1.0, 0.0]), "answer 1 of a group is empty"),
        (lambda p: grpo_batch([], gpt(), pad_id=0), "at least one sequence"),
        (lambda p: grpo_batch([Group([1], [[2]], [1.0])], gpt(), pad_id=0), "at least 2 answers"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw()[0])


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES, ids=lambda average: type(average).__name__)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_of_a_batch_is_that_of_its_answers_one_by_one(average, beta):
    policy, behaviour, reference = gpt(0), gpt(1), gpt(2)
    loss = GRPOLoss(average, Clip(0.2, 0.3), beta)
    assert isinstance(loss, Loss)
    batch = grpo_batch(GROUPS, behaviour, pad_id=2, reference=reference)
    rows = [(group.prompt, answer) for group in GROUPS for answer in group.answers]
    models = [[log_probs_one_by_one(model, *row) for row in rows] for model in (policy, behaviour, reference)]
    advantages = []
    for group in GROUPS:
        rewards = np.array(group.rewards)
        advantages += list((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4))
    expected = averaged_by_hand(by_hand(*models, advantages, low=0.2, high=0.3, beta=beta), average)
    assert loss.total(policy, batch).item() / loss.count(batch) == pytest.approx(expected, rel=1e-4)


def test_log_probs_stand_at_their_targets_and_nowhere_else():
    model = gpt()
    batch = grpo_batch(GROUPS, model, pad_id=0, advantages=centred_advantages)
    rows = [(group.prompt, answer) for group in GROUPS for answer in group.answers]
    for row, (prompt, answer) in enumerate(rows):
        first = len(prompt) - 1
        expected = torch.zeros(batch.targets.shape[1])
        expected[first : first + len(answer)] = torch.tensor(log_probs_one_by_one(model, prompt, answer))
        torch.testing.assert_close(token_log_probs(model, batch)[row], expected)
    torch.testing.assert_close(batch.inputs[1], torch.tensor([0.5, -0.5, 0.0, -1.5, 1.5]))
    half = copy.deepcopy(model).bfloat16()
    assert token_log_probs(half, batch).dtype is torch.float32


def test_the_first_step_is_that_of_the_policy_gradient():
    """Where the ratio is 1 the gradient is that of -A ln p: nothing of clip and ratio is seen."""
    model = gpt().double()
    batch = grpo_batch(GROUPS, model, pad_id=0)
    loss = GRPOLoss(PerToken())
    plain = -(batch.inputs[1][:, None] * token_log_probs(model, batch)).sum()
    weights = list(model.parameters())
    ours = torch.autograd.grad(loss.total(model, batch), weights)
    for a, b in zip(ours, torch.autograd.grad(plain, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert not loss.compare(model, batch).clipped.any()


@pytest.mark.parametrize("average", AVERAGES, ids=lambda average: type(average).__name__)
def test_a_step_on_parts_is_the_step_on_the_whole(average):
    whole, parts, behaviour = gpt().double(), gpt().double(), gpt(1).double()
    batch = grpo_batch(GROUPS, behaviour, pad_id=0, reference=behaviour)
    cut = [
        batch._replace(inputs=tuple(t[rows] for t in batch.inputs), targets=batch.targets[rows])
        for rows in (slice(0, 1), slice(1, 5))
    ]
    loss = GRPOLoss(average, beta=0.1)
    for model, batches in ((whole, batch), (parts, cut)):
        train_step(model, batches, AdamW(model.parameters()), lr=0.01, loss=loss)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_what_is_stored_is_without_dropout_and_without_gradient():
    model = gpt(dropout=0.5).train()
    stored = grpo_batch(GROUPS, model, pad_id=0, reference=model).inputs[2:]
    assert model.training
    model.eval()
    batch = grpo_batch(GROUPS, model, pad_id=0)
    for values in stored:
        torch.testing.assert_close(values, token_log_probs(model, batch).detach())
        assert not values.requires_grad


def test_batches_that_are_not_those_of_grpo():
    batch = grpo_batch(GROUPS, gpt(), pad_id=0)
    with pytest.raises(ValueError, match="the batch has 1 inputs, not 3 or 4"):
        GRPOLoss().total(gpt(), batch._replace(inputs=batch.inputs[:1]))
    with pytest.raises(ValueError, match="there is none"):
        GRPOLoss(beta=0.1).total(gpt(), batch)


def test_what_an_answer_weighs_by_its_length():
    answer = torch.tensor([[True, True, True, True], [False, True, False, False]])
    shares = {type(average).__name__: average.weights(answer).sum(dim=1).tolist() for average in AVERAGES}
    assert shares["PerAnswer"] == [1.0, 1.0]
    assert shares["PerToken"] == [4.0, 1.0]
    assert shares["PerLength"] == pytest.approx([4 / 7, 1 / 7])
    assert [average.count(answer) for average in AVERAGES] == [2, 5, 2]
    assert not any(average.weights(answer)[~answer].any() for average in AVERAGES)


# -- it learns --------------------------------------------------------------------------------------------------------


def test_a_model_learns_by_trying_what_is_rewarded():
    """The first token of the answer is to be that of the prompt; nobody shows the model an answer."""
    model, generator = gpt(), torch.Generator().manual_seed(0)
    start = copy.deepcopy(model)
    optimizer = AdamW(model.parameters(), weight_decay=0.0)
    prompts = [[token] for token in range(3, 9)]
    size = 12

    def attempt() -> tuple[list[Group], list[int]]:
        rows = [prompt for prompt in prompts for _ in range(size)]
        answers = generate(model, rows, 1, choose=Sampler(), generator=generator).tolist()
        right = [float(answer[0] == row[0]) for row, answer in zip(rows, answers, strict=True)]
        cut = [slice(i, i + size) for i in range(0, len(rows), size)]
        groups = [Group(p, answers[c], right[c]) for p, c in zip(prompts, cut, strict=True)]
        return groups, [int(sum(group.rewards)) for group in groups]

    loss = GRPOLoss(beta=0.01)
    before = mean_pass_at(1, attempt()[1], size)
    for _ in range(20):
        batch = grpo_batch(attempt()[0], model, pad_id=0, reference=start)
        for _ in range(2):
            train_step(model, batch, optimizer, lr=0.02, loss=loss)
    after = mean_pass_at(1, attempt()[1], size)
    assert before < 0.3
    assert after > 0.9
    with torch.no_grad():
        result = loss.compare(model, batch)
    assert result.kl[batch.targets != IGNORE_ID].mean() > 0.5
