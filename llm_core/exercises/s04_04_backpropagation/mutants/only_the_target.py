"""Looks at the target's logit alone."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    one_hot = F.one_hot(targets, logits.shape[-1])
    return (logits.softmax(dim=-1) - 1) * one_hot / len(targets)
