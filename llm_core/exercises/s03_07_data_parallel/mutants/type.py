"""Returns the gradient alone."""

from torch import Tensor


def scaled_step(
    gradient: Tensor, scale: float, good_steps: int, max_norm: float, interval: int
) -> tuple[Tensor | None, float, int]:
    """A step with a loss scale, wrong in one place."""
    return gradient / scale  # type: ignore[return-value]
