"""Overwrites the gradients that it was given."""

from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    shape = (-1, *[1] * (gradients.ndim - 1))
    total = (counts.view(shape) * gradients).sum(0)
    gradients[:] = total / counts.sum()
    return gradients
