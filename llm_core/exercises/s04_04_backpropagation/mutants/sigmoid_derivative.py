"""Takes the derivative of a sigmoid."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    return weights * (1 - weights) * d_weights
