"""Sums over the queries."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    mean = (weights * d_weights).sum(dim=-2, keepdim=True)
    return weights * (d_weights - mean)
