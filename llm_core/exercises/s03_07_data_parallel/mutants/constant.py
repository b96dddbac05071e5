"""A placeholder that was left in."""

import torch
from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    return torch.zeros_like(gradients)
