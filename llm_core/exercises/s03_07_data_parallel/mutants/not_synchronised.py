"""Every worker keeps its own gradient."""

from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    return gradients.clone()
