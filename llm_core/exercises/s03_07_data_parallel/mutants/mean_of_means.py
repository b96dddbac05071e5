"""The plain mean of the workers' means."""

from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    return gradients.mean(0).expand_as(gradients).clone()
