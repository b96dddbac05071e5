"""Averages each sentence, then the sentences."""

import torch.nn.functional as F
from torch import Tensor


def mean_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean loss, wrong in one place."""
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
    return ((losses * mask).sum(dim=1) / mask.sum(dim=1)).mean()
