"""Returns a placeholder."""

import torch
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    return torch.zeros_like(logits)
