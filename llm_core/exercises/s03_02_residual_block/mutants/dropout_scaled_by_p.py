"""Divides by p."""

import torch
from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return torch.where(keep, x / p if p else x, 0.0) if training else x
