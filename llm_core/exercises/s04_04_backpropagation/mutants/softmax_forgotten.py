"""Takes the one-hot off the logits."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    return (logits - F.one_hot(targets, logits.shape[-1])) / len(targets)
