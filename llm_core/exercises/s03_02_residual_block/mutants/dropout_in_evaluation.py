"""Never looks at `training`."""

from torch import Tensor


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, wrong in one place."""
    return x * keep / (1 - p)
