"""Subtracts the row sum in place."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    d_weights -= (weights * d_weights).sum(dim=-1, keepdim=True)
    return weights * d_weights
