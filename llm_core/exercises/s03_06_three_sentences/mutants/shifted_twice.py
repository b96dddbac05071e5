"""Shifts the logits against targets that are shifted already."""

import torch.nn.functional as F
from torch import Tensor


def mean_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean loss, wrong in one place."""
    logits, targets, mask = logits[:, :-1], targets[:, 1:], mask[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
    return (losses * mask).sum() / mask.sum()
