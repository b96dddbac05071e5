"""Takes off the plain mean."""

from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """The softmax's way back, wrong in one place."""
    return weights * (d_weights - d_weights.mean(dim=-1, keepdim=True))
