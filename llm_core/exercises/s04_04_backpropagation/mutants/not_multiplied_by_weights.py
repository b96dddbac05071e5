"""Forgets the factor in front."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    mean = (weights * d_weights).sum(dim=-1, keepdim=True)
    return d_weights - mean
