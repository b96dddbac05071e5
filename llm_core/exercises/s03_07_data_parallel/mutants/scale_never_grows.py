"""Forgets to double the scale."""

from torch import Tensor


def scaled_step(
    gradient: Tensor, scale: float, good_steps: int, max_norm: float, interval: int
) -> tuple[Tensor | None, float, int]:
    """A step with a loss scale, wrong in one place."""
    if not gradient.isfinite().all():
        return None, scale / 2, 0
    true = gradient / scale
    norm = true.norm().item()
    if norm > max_norm:
        true = true * (max_norm / norm)
    good_steps += 1
    if good_steps == interval:
        return true, scale, 0
    return true, scale, good_steps
