"""Drops and leaves it at that."""

from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return x * keep if training else x
