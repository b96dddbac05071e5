"""Writes the softmax as the formula has it."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    p = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return (p - F.one_hot(targets, logits.shape[-1])) / len(targets)
