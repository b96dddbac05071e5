"""Subtracts the wrong way round."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    return (F.one_hot(targets, logits.shape[-1]) - logits.softmax(dim=-1)) / len(targets)
