"""Averages over the vocabulary."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    V = logits.shape[-1]
    return (logits.softmax(dim=-1) - F.one_hot(targets, V)) / V
