"""Takes True for: drop this."""

from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return x.masked_fill(keep, 0.0) / (1 - p) if training else x
