"""Goes back through the logarithm and the softmax one after the other."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy's way back, wrong in one place."""
    p, one_hot = logits.softmax(dim=-1), F.one_hot(targets, logits.shape[-1])
    d_p = -one_hot / p / len(targets)
    return p * (d_p - (p * d_p).sum(dim=-1, keepdim=True))
