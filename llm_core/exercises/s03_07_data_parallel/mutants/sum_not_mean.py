"""Adds up and never divides."""

from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    return gradients.sum(0).expand_as(gradients).clone()
