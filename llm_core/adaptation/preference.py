"""Learning from preferences: of two answers to a prompt, make the better one more likely than the worse one.

Direct preference optimisation (DPO) needs no reward model and no sampling. It compares the model with a reference, the
model as it was at first: how much more likely has each answer become?

    reward(y) = beta (ln p(y | x) - ln p_reference(y | x))
    loss      = -ln sigmoid(reward(chosen) - reward(rejected))          mean over the pairs

The loss is ln 2 at the start, where both rewards are zero. Only the difference counts: both answers may become less
likely.

    dpo_loss, ipo_loss    the definitions, on the log-probabilities of whole answers
    bradley_terry_loss    the same question to a reward model, which gives each answer a number of its own
    preference_batch      (prompt, chosen, rejected) -> a batch
    PreferenceLoss        either of them as a `Loss`, for `train_step`
    FrozenModel, LoRAOff, Stored    where the reference comes from

Sources: Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs"; Rafailov et al. 2023, "Direct Preference
Optimization: Your Language Model is Secretly a Reward Model"; Azar et al. 2023, "A General Theoretical Paradigm to
Understand Learning from Human Preferences".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_core.adaptation.lora import without_lora
from llm_core.adaptation.supervised import Example, supervised_batch
from llm_core.training.batches import Batch
from llm_core.training.masking import IGNORE_ID

Reference = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> the reference's log-probabilities of the batch's rows, (2N,); no gradient."""


@dataclass(frozen=True)
class Preferences:
    """What N pairs say of a model. `losses` has the gradient; the rewards are numbers to look at."""

    losses: Float[Tensor, " N"]
    chosen_rewards: Float[Tensor, " N"]
    rejected_rewards: Float[Tensor, " N"]

    @property
    def margins(self) -> Float[Tensor, " N"]:
        """How much more the chosen answer is worth, in nats times beta."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose chosen answer has the greater reward. A tie, as at the start, is none."""
        return (self.margins > 0).double().mean().item()


def bradley_terry_loss(chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """-ln sigmoid(chosen - rejected) for each pair: how surprised a reward model is by what was preferred, in nats.

    Bradley and Terry (1952): the first of two is preferred with the probability sigmoid(difference of their rewards).
    So only differences are learned; adding the same to all rewards changes nothing.

    Args:
        chosen, rejected: rewards of the two answers to each prompt, as the reward model gives them.

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    return -F.logsigmoid(chosen - rejected)


def dpo_loss(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    *,
    beta: float | int = 0.1,
    label_smoothing: float | int = 0.0,
) -> Preferences:
    """-ln sigmoid(margin) for each pair, from the log-probabilities of the answers (Rafailov et al. 2023, equation 7).

    Args:
        policy_chosen, policy_rejected: ln p(answer | prompt) by the model that learns, in nats.
        reference_chosen, reference_rejected: the same by the reference.
        beta: the smaller, the further the model may go from the reference.
        label_smoothing: the share of pairs that are taken to be the wrong way round (Mitchell 2023, "A note on DPO
            with noisy preferences & relationship to IPO"). The margin then has a best value and does not grow for ever.

    Raises:
        ValueError: beta is not above 0, or label_smoothing is outside 0 ... 0.5, where the labels would say nothing.

    >>> same = torch.tensor([-5.0])
    >>> dpo_loss(same, same, same, same).losses
    tensor([0.6931])
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0: got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label smoothing is the share of wrong labels, 0 <= share < 0.5: got {label_smoothing}. "
            "From one half on the labels say nothing, or the opposite"
        )
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    margin = chosen - rejected
    losses = bradley_terry_loss(chosen, rejected)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-margin)
    return Preferences(losses, chosen.detach(), rejected.detach())


def ipo_loss(
    policy_chosen: Float[Tensor, " N"],
    policy_rejected: Float[Tensor, " N"],
    reference_chosen: Float[Tensor, " N"],
    reference_rejected: Float[Tensor, " N"],
    *,
    tau: float | int = 0.1,
) -> Preferences:
    """(h - 1 / (2 tau))^2 for each pair, h the margin without its factor (Azar et al. 2023, equation 17).

    DPO wants every margin to grow for ever. IPO wants it to be 1 / (2 tau), and no more. The rewards are tau times the
    log-ratios; arguments are those of `dpo_loss`.

    Raises:
        ValueError: tau is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0: got {tau}")
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    losses = (chosen - rejected - 1 / (2 * tau)) ** 2
    return Preferences(losses, tau * chosen.detach(), tau * rejected.detach())


def sequence_log_probs(
    model: nn.Module, ids: Int[Tensor, "B T"], completion: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """ln p(completion | what stands before it) of each row: the sum over the completion's tokens, in nats.

    A sum and not a mean: a longer answer is less likely.

    Args:
        model: ids (B, T) -> logits (B, T, V), reading from left to right.
        ids: prompts and completions, filled up on the right.
        completion: True at the tokens of the completions; not at prompts, not at padding.

    Raises:
        ValueError: a row's first token is marked, which has nothing before it; or a row has no mark.
    """
    if completion[:, 0].any():
        raise ValueError("the first token of a row cannot be of a completion: nothing stands before it. Add a prompt")
    if not completion.any(dim=1).all():
        row = int((~completion.any(dim=1)).nonzero()[0])
        raise ValueError(f"row {row} has no token of a completion: its probability would be 1 whatever the model does")
    return _row_sums(model(ids[:, :-1]), ids[:, 1:], completion[:, 1:])


def preference_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], *, pad_id: int, max_length: int | None = None
) -> Batch:
    """A batch of N pairs: inputs (2N, T) and next-token targets (2N, T), which count in the completions only.

    Rows 0 ... N - 1 are prompts with their chosen answers, rows N ... 2N - 1 the same prompts with the rejected ones.

    Args:
        pairs: token ids of a prompt, the chosen and the rejected answer; the token that ends an answer belongs to it.
        pad_id: fills the rows up on the right.
        max_length: tokens of the longest row allowed, as in `supervised_batch`. A cut answer would be another answer,
            so none is cut.

    Raises:
        ValueError: there is no pair; a prompt or an answer is empty; or a row is too long.
    """
    for i, (prompt, chosen, rejected) in enumerate(pairs):
        for name, ids in (("prompt", prompt), ("chosen answer", chosen), ("rejected answer", rejected)):
            if len(ids) == 0:
                raise ValueError(f"the {name} of pair {i} is empty: it needs at least one token, an end token for one")
    rows = [Example.of(prompt, chosen) for prompt, chosen, _ in pairs]
    rows += [Example.of(prompt, rejected) for prompt, _, rejected in pairs]
    return supervised_batch(rows, pad_id=pad_id, max_length=max_length)


@dataclass(frozen=True)
class FrozenModel:
    """The reference is another model: a copy from before the training. It costs the memory of a second model."""

    model: nn.Module

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, " N2"]:
        """The log-probabilities of the batch's rows by the other model."""
        return _reference_log_probs(self.model, batch)


@dataclass(frozen=True)
class LoRAOff:
    """The reference is the model that learns, with its adapters switched off: no second model is needed."""

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, " N2"]:
        """The log-probabilities of the batch's rows by the model without its adapters.

        Raises:
            ValueError: the model has no LoRA: it would be its own reference, and nothing could be learned.
        """
        with without_lora(model):
            return _reference_log_probs(model, batch)


@dataclass(frozen=True)
class Stored:
    """The reference's log-probabilities were computed before: `Stored.of` puts them into the batch."""

    @staticmethod
    def of(batch: Batch, reference: nn.Module) -> Batch:
        """The batch with the reference's log-probabilities of its rows, as the second of its inputs."""
        return Batch((batch.inputs[0], _reference_log_probs(reference, batch)), batch.targets)

    def __call__(self, model: nn.Module, batch: Batch) -> Float[Tensor, " N2"]:
        """What the batch brings.

        Raises:
            ValueError: it brings nothing.
        """
        if len(batch.inputs) != 2:
            raise ValueError(
                f"the batch brings no log-probabilities: it has {len(batch.inputs)} inputs, not 2. Make it with "
                "Stored.of(batch, reference)"
            )
        return batch.inputs[1]


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss on pairs as a `Loss`: `train_step` trains on the batches of `preference_batch`, and counts pairs.

    Args:
        reference: whom the model is compared with: `LoRAOff()`, `FrozenModel(model)` or `Stored()`.
        objective: `dpo_loss`, `ipo_loss`, or either with other settings: `partial(dpo_loss, beta=0.5)`.
    """

    reference: Reference
    objective: Callable[[Tensor, Tensor, Tensor, Tensor], Preferences] = dpo_loss

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of the batch's pairs."""
        return self.compare(model, batch).losses.sum()

    def count(self, batch: Batch) -> int | float:
        """The number of pairs."""
        rows = len(batch.targets)
        if rows % 2:
            raise ValueError(f"a batch of pairs has an even number of rows, chosen and then rejected: got {rows}")
        return rows // 2

    def compare(self, model: nn.Module, batch: Batch) -> Preferences:
        """Losses, rewards and accuracy of the batch's pairs; under `torch.no_grad()`, for an evaluation."""
        n = int(self.count(batch))
        reference = self.reference(model, batch)
        policy = _log_probs(model, batch)
        return self.objective(policy[:n], policy[n:], reference[:n], reference[n:])


def _log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, " N2"]:
    return _row_sums(model(batch.inputs[0]), batch.targets, batch.targets != IGNORE_ID)


def _row_sums(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """The sum of ln p(target) over the real targets of each row."""
    rows = real.nonzero()[:, 0]
    # float32 at least: in bfloat16 the sum of a long answer is off by more than the two answers differ.
    logits = logits[real].to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(-1, targets[real].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    return picked.new_zeros(len(targets)).index_add(0, rows, picked)


@torch.no_grad()
def _reference_log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, " N2"]:
    with evaluating(model):
        return _log_probs(model, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode: a reference that drops out would be another one at every call."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training
