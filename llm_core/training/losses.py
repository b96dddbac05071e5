"""Losses: how surprised the model is by what really came.

cross_entropy(logits, targets)   the mean over the targets: the function to read
CrossEntropy(...)                the same as the sum and the number of targets, which is what a training step wants:
                                 batches can then be cut into parts of any size, and the parts add up
SoftCrossEntropy()               the same where a target is no token but a distribution: what a teacher expects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_core.checks import check_shares
from llm_core.training.batches import Batch


@runtime_checkable
class Loss(Protocol):
    """What a model is trained on: a sum over the targets of a batch, and how many targets the sum has.

    A mean would not do. Batches that are padded have unequal numbers of targets, and the mean of means of unequal
    batches is not the mean.
    """

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of the batch's targets."""
        ...

    def count(self, batch: Batch) -> int | float:
        """The number of targets in that sum."""
        ...


def cross_entropy(
    logits: Float[Tensor, "*batch V"],
    targets: Int[Tensor, " *batch"],
    *,
    ignore_id: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of -ln p(target) over the targets, in nats a token; p is the softmax of the logits.

    -ln p(target) = logsumexp(logits) - logits[target], so no probability is ever computed, and none can underflow.

    Args:
        logits: scores of the V tokens, not probabilities.
        targets: the tokens that came.
        ignore_id: targets with this id (padding) do not count, neither in the sum nor in the number it is
            divided by.
        label_smoothing: this share of the target's probability is spread evenly over all V tokens
            (Szegedy et al. 2016; 0.1 in Vaswani et al. 2017, section 5.4).

    Raises:
        ValueError: no target counts, so that there is no mean; or label_smoothing is outside 0 ... 1.
    """
    check_shares(label_smoothing=label_smoothing)
    if ignore_id is not None:
        real = targets != ignore_id
        logits, targets = logits[real], targets[real]
    if targets.numel() == 0:
        raise ValueError(f"the batch has no target to learn from: all of them are ignore_id={ignore_id}, or none came")
    return _surprises(logits, targets, label_smoothing).mean()


@dataclass(frozen=True)
class CrossEntropy:
    """`cross_entropy` as a `Loss`: the model is called as `model(*batch.inputs)` and gives logits.

    Args:
        ignore_id: targets with this id (padding) do not count.
        label_smoothing: this share of the target's probability is spread evenly over all V tokens.

    Raises:
        ValueError: label_smoothing is outside 0 ... 1.
    """

    ignore_id: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_shares(label_smoothing=self.label_smoothing)

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of -ln p(target) over the targets that count, in nats."""
        logits, targets = model(*batch.inputs), batch.targets
        if self.ignore_id is not None:
            real = targets != self.ignore_id
            logits, targets = logits[real], targets[real]
        return _surprises(logits, targets, self.label_smoothing).sum()

    def count(self, batch: Batch) -> int | float:
        """How many targets are not `ignore_id`."""
        return count_targets(batch.targets, self.ignore_id)


@dataclass(frozen=True)
class SoftCrossEntropy:
    """Cross-entropy to targets (B, T, V) that are distributions over all tokens, as a `Loss`.

    A text shows one token at each place, and by chance. What a teacher expects there, another model that reads the same
    text, also tells what else might have come. Usual is a mix of the two: with the share a,

        target = (1 - a) * (1 for the token that came, 0 for all others) + a * (the teacher's probabilities)

    The loss is smallest where the model's distribution is the target's, and then is the target's entropy.

    Source: Hinton, Vinyals and Dean 2015.
    """

    def total(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The sum of -target ln p over all tokens of all places, in nats.

        Raises:
            ValueError: the targets have another shape than the logits: ids instead of distributions, for one.
        """
        logits, targets = model(*batch.inputs), batch.targets
        if targets.shape != logits.shape:
            raise ValueError(
                f"soft targets are one probability for each logit: got targets {tuple(targets.shape)} for logits "
                f"{tuple(logits.shape)}. Targets that are ids go with CrossEntropy"
            )
        if logits.dtype.itemsize < 4:
            logits = logits.float()
        return -(targets * logits.log_softmax(dim=-1)).sum()

    def count(self, batch: Batch) -> int:
        """How many distributions there are."""
        return batch.targets[..., 0].numel()


def _surprises(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, " *batch"], label_smoothing: float
) -> Float[Tensor, " *batch"]:
    """-ln p(target) of each target, with `label_smoothing` of it spread over all V."""
    if logits.dtype.itemsize < 4:  # under autocast the head gives bf16, in which 10.40 and 10.43 are the same loss
        logits = logits.float()
    log_total = logits.logsumexp(dim=-1)
    surprise = log_total - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        surprise = (1 - label_smoothing) * surprise + label_smoothing * (log_total - logits.mean(dim=-1))
    return surprise


def count_targets(targets: Int[Tensor, " *batch"], ignore_id: int | None) -> int:
    """How many targets are not `ignore_id`."""
    return targets.numel() if ignore_id is None else int((targets != ignore_id).sum())
