"""Draws a mask of its own."""

import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return F.dropout(x, p, training)
