"""Losses: how surprised the model is by what really came.

Taught in chapters/03_algorithms/06_three_sentences and, once they are written, in 03_algorithms/04_training and
04_mathematics/05_likelihood_and_perplexity.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(
    logits: Float[Tensor, "*batch V"],
    targets: Int[Tensor, "*batch"],
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
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label smoothing is a share, 0 <= share < 1: got {label_smoothing}")
    if ignore_id is not None:
        real = targets != ignore_id
        logits, targets = logits[real], targets[real]
    if targets.numel() == 0:
        raise ValueError(f"the batch has no target to learn from: all of them are ignore_id={ignore_id}, or none came")
    log_total = logits.logsumexp(dim=-1)
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = log_total - picked
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_total - logits.mean(dim=-1))
    return loss.mean()
