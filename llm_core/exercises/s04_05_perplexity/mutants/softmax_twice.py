"""Gives probabilities to a function that wants logits."""

import torch.nn.functional as F
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each token's loss, wrong in one place."""
    probabilities = logits.softmax(dim=-1)
    return F.cross_entropy(probabilities.transpose(1, 2), targets, reduction="none")
