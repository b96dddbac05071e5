"""Treats each weight as a function of its own score alone."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    return weights * d_weights
