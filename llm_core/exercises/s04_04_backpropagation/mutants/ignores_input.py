"""Works as if all weights were equal."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    return (d_weights - d_weights.mean(dim=-1, keepdim=True)) / d_weights.shape[-1]
