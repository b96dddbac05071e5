"""Clips to length 1."""

import torch
from torch import Tensor


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """The clipped gradients, wrong in one place."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [(1.0 / norm).clamp(max=1.0) * gradient for gradient in gradients]
