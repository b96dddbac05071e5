"""Multiplies by 1 - p in evaluation, as the older form of dropout does."""

from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return x * keep / (1 - p) if training else x * (1 - p)
