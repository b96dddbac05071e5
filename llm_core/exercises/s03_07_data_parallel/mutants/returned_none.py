"""Forgets to return."""

from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:  # type: ignore[return]
    """The exchange, wrong in one place."""
    _ = (counts @ gradients.flatten(1)) / counts.sum()
