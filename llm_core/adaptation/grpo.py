"""Reinforcement learning with rewards that can be checked: try often, and do more of what went better than the rest.

A model answers a prompt G times, and something outside it (a sum that is right or not, a program that passes or not)
rewards each answer. Group relative policy optimisation (GRPO) compares the answers to one prompt with one another. No
second network has to guess what a prompt is worth:

    A_i     = (reward_i - mean of the group) / standard deviation of the group       for all tokens of answer i
    r_it    = p(token t of answer i) / p_behaviour(the same token)                   1 before the first step
    loss_it = -min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i) + beta KL_it

p_behaviour is the model that gave the answers. Several steps can be made on the same answers; the clip, which is that
of PPO, takes the gradient from a token once its probability has gone far enough in the direction that its advantage
asks for. Going back always counts. KL_it keeps the model near a reference.

    group_advantages, centred_advantages     rewards -> advantages
    kl_to_reference                          an estimate of KL(p || reference) from the tokens that were drawn
    grpo_token_losses                        the definition, on log-probabilities of tokens
    PerAnswer, PerToken, PerLength           how tokens are averaged, which says what a long answer weighs
    Group, grpo_batch, GRPOLoss              prompts with their answers -> a batch -> a `Loss`, for `train_step`

Sources: Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", section
4.1 (GRPO); Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (the clip); Yu et al. 2025, "DAPO: An
Open-Source LLM Reinforcement Learning System at Scale" (`PerToken`, and a clip that is wider above); Liu et al. 2025,
"Understanding R1-Zero-Like Training: A Critical Perspective" (Dr. GRPO: `PerLength`, `centred_advantages`).

Chapter: 5.8, Preferences and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm_core.adaptation.preference import evaluating
from llm_core.adaptation.supervised import Example, supervised_batch
from llm_core.checks import check_sizes
from llm_core.training.batches import Batch
from llm_core.training.masking import IGNORE_ID


def centred_advantages(rewards: Float[Tensor, "*groups G"]) -> Float[Tensor, "*groups G"]:
    """Each reward less the mean of its group (Dr. GRPO, Liu et al. 2025).

    Raises:
        ValueError: a group has fewer than two answers, so that there is nothing to compare.
    """
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"a group needs at least 2 answers to the same prompt, to be compared with one another: got "
            f"{rewards.shape[-1]}. Sample more answers"
        )
    return rewards - rewards.mean(dim=-1, keepdim=True)


def group_advantages(rewards: Float[Tensor, "*groups G"], *, floor: float = 1e-4) -> Float[Tensor, "*groups G"]:
    """`centred_advantages` in units of the group's standard deviation (GRPO, Shao et al. 2024, section 4.1.2).

    A prompt that nearly always or nearly never succeeds has a small deviation, and so its rare answers weigh most.
    Where all answers are worth the same, all advantages are 0 and nothing is learned.

    Args:
        rewards: what the answers are worth, in any unit.
        floor: is added to the deviation, which may be 0. It is the sample's: divided by G - 1.

    Raises:
        ValueError: a group has fewer than two answers.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0])).round(decimals=2)
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    """
    return centred_advantages(rewards) / (rewards.std(dim=-1, keepdim=True) + floor)


def kl_to_reference(policy: Float[Tensor, "*any"], reference: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """q - 1 - ln q for each token, q = p_reference / p: an estimate of KL(p || p_reference), in nats.

    Its mean over tokens drawn from p is the divergence, as that of -ln q is. No single value is below 0, and it varies
    less where the two models are near one another (Schulman 2020, "Approximating KL Divergence", the estimator k3).

    Args:
        policy, reference: ln p(token) by the model that drew the tokens and by the other.
    """
    log_ratio = reference - policy
    return log_ratio.exp() - 1 - log_ratio


@dataclass(frozen=True)
class Clip:
    """A token is pushed no further once its ratio p / p_behaviour is below 1 - low or above 1 + high.

    PPO and GRPO have one width for both. DAPO has `Clip(0.2, 0.28)`: a token of probability 0.01 may only come to 0.012
    with a `high` of 0.2, so that what is rare stays rare.

    Raises:
        ValueError: not 0 < low <= 1, or high is not above 0.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1:
            raise ValueError(f"the clip's low is a distance below the ratio 1, 0 < low <= 1: got {self.low}")
        if not self.high > 0:
            raise ValueError(f"the clip's high is a distance above the ratio 1, above 0: got {self.high}")


@dataclass(frozen=True)
class TokenLosses:
    """What GRPO says of each token of N answers. `losses` has the gradient; the others are there to look at."""

    losses: Float[Tensor, "N T"]
    kl: Float[Tensor, "N T"] | None
    """`kl_to_reference`; None without a reference."""
    clipped: Bool[Tensor, "N T"]
    """True where the clip has taken the gradient of the reward."""


def grpo_token_losses(
    policy: Float[Tensor, "N T"],
    behaviour: Float[Tensor, "N T"],
    advantages: Float[Tensor, " N"],
    *,
    reference: Float[Tensor, "N T"] | None = None,
    clip: Clip = Clip(),
    beta: float = 0.0,
) -> TokenLosses:
    """-min(r A, clip(r) A) + beta KL for each token (Shao et al. 2024, section 4.1.1).

    Args:
        policy: ln p(token) by the model that learns.
        behaviour: the same by the model that gave the answers, as it then was. It gets no gradient.
        advantages: of the N answers. It gets no gradient.
        reference: the same as `policy` by the model to stay near to. It gets no gradient.
        clip: how far a token is pushed.
        beta: weight of the divergence from the reference; 0.04 in the paper, 0 in DAPO and Dr. GRPO.

    Raises:
        ValueError: beta is below 0, or above 0 without a reference.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or above: got {beta}")
    if beta and reference is None:
        raise ValueError(f"beta={beta} weighs the divergence from a reference, and there is none: give one, or beta=0")
    ratio = (policy - behaviour.detach()).exp()
    advantage = advantages.detach()[:, None]
    free, held = ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage
    losses, kl = -torch.minimum(free, held), None
    if reference is not None:
        kl = kl_to_reference(policy, reference.detach())
        losses = losses + beta * kl
        kl = kl.detach()
    return TokenLosses(losses, kl, (held < free).detach())


@runtime_checkable
class Average(Protocol):
    """How the losses of tokens become one number: sum(weights * losses) / count."""

    def weights(self, answer: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """What each token weighs; 0 outside the answers, where the mask is False."""
        ...

    def count(self, answer: Bool[Tensor, "N T"]) -> int:
        """What the weighted sum is divided by."""
        ...


@dataclass(frozen=True)
class PerAnswer:
    """The mean over the tokens of each answer, then over the answers, as in GRPO.

    A token of a long answer weighs less. Being wrong at length costs less a token than being wrong in short, which
    draws wrong answers out (Liu et al. 2025).
    """

    def weights(self, answer: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """1 / length of the answer."""
        return answer / answer.sum(dim=1, keepdim=True).clamp(min=1)

    def count(self, answer: Bool[Tensor, "N T"]) -> int:
        """The number of answers."""
        return len(answer)


@dataclass(frozen=True)
class PerToken:
    """The mean over all tokens of all answers, as in DAPO: a long answer weighs more than a short one."""

    def weights(self, answer: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """1 for each token of an answer."""
        return answer.float()

    def count(self, answer: Bool[Tensor, "N T"]) -> int:
        """The number of tokens of answers."""
        return int(answer.sum())


@dataclass(frozen=True)
class PerLength:
    """The sum over the tokens of each answer, divided by a length that is the same for all, as in Dr. GRPO.

    Tokens weigh the same in every answer and in every batch.

    Args:
        length: tokens, commonly of the longest answer that is allowed.

    Raises:
        ValueError: length is below 1.
    """

    length: int

    def __post_init__(self) -> None:
        check_sizes(length=self.length)

    def weights(self, answer: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """1 / length."""
        return answer / self.length

    def count(self, answer: Bool[Tensor, "N T"]) -> int:
        """The number of answers."""
        return len(answer)


@dataclass(frozen=True)
class Group:
    """One prompt, some answers to it as token ids (the token that ends an answer belongs to it), and their rewards.

    The answers are drawn at temperature 1 from all tokens: the ratio compares with the model's own probabilities.

    Raises:
        ValueError: the prompt or an answer is empty, or there are not as many rewards as answers.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    rewards: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.rewards):
            raise ValueError(
                f"each answer needs its reward: got {len(self.answers)} answers and {len(self.rewards)} rewards"
            )
        if len(self.prompt) == 0:
            raise ValueError("the prompt of a group is empty: it needs at least one token, a start token for one")
        for i, answer in enumerate(self.answers):
            if len(answer) == 0:
                raise ValueError(f"answer {i} of a group is empty: it needs at least one token, an end token for one")


def grpo_batch(
    groups: Sequence[Group],
    policy: nn.Module,
    *,
    pad_id: int,
    reference: nn.Module | None = None,
    advantages: Callable[[Tensor], Tensor] = group_advantages,
) -> Batch:
    """A batch of all answers: inputs are (ids, advantages, behaviour[, reference]), targets count in answers only.

    Args:
        groups: prompts with their answers and rewards; groups may differ in size.
        policy: the model that gave the answers, before any step on them. Its log-probabilities are stored.
        pad_id: fills the rows up on the right.
        reference: the model to stay near to. Its log-probabilities are stored too.
        advantages: `group_advantages` or `centred_advantages`.

    Raises:
        ValueError: there is no group, or `advantages` refuses one.
    """
    rows = [Example.of(group.prompt, answer) for group in groups for answer in group.answers]
    batch = supervised_batch(rows, pad_id=pad_id)
    worth = torch.cat([advantages(torch.tensor(group.rewards, dtype=torch.float32)) for group in groups])
    stored = [_fixed_log_probs(model, batch) for model in (policy, reference) if model is not None]
    return Batch((*batch.inputs, worth, *stored), batch.targets)


@dataclass(frozen=True)
class GRPOLoss:
    """GRPO as a `Loss`: `train_step` trains on the batches of `grpo_batch`, whole or in parts.

    The model is to be in eval mode, or to have no dropout: with dropout its ratio to its own past would not be 1.

    Args:
        average: `PerAnswer()` (GRPO), `PerToken()` (DAPO) or `PerLength(n)` (Dr. GRPO).
        clip, beta: as in `grpo_token_losses`.
    """

    average: Average = PerAnswer()
    clip: Clip = Clip()
    beta: float = 0.0

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of the losses of the tokens."""
        return (self.average.weights(batch.targets != IGNORE_ID) * self.compare(model, batch).losses).sum()

    def count(self, batch: Batch) -> int | float:
        """What `average` divides the sum by."""
        return self.average.count(batch.targets != IGNORE_ID)

    def compare(self, model: nn.Module, batch: Batch) -> TokenLosses:
        """Losses, divergence and clipped tokens; under `torch.no_grad()`, to look at. What is padding says nothing.

        Raises:
            ValueError: the batch is not one of `grpo_batch`, or beta is above 0 and it brings no reference.
        """
        if len(batch.inputs) not in (3, 4):
            raise ValueError(
                f"the batch has {len(batch.inputs)} inputs, not 3 or 4 (ids, advantages, behaviour, reference): make "
                "it with grpo_batch"
            )
        _, advantages, behaviour, *reference = batch.inputs
        return grpo_token_losses(
            token_log_probs(model, batch),
            behaviour,
            advantages,
            reference=reference[0] if reference else None,
            clip=self.clip,
            beta=self.beta,
        )


def token_log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, "N T"]:
    """ln p(target) of each target, in nats; 0 at padding and prompts."""
    real = batch.targets != IGNORE_ID
    # float32 at least: a ratio of bfloat16 probabilities would be off by more than a step moves it.
    logits = model(batch.inputs[0])[real]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(-1, batch.targets[real].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    return picked.new_zeros(real.shape).masked_scatter(real, picked)


@torch.no_grad()
def _fixed_log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, "N T"]:
    with evaluating(model):
        return token_log_probs(model, batch)
