"""Subtracts the sum of row i from column i; with batches in front it stops."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    mean = (weights * d_weights).sum(dim=-1)
    return weights * (d_weights - mean)
