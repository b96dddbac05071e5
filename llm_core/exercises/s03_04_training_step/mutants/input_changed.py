"""Shortens the caller's own tensors."""

import torch
from torch import Tensor


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """The clipped gradients, wrong in one place."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient.mul_((max_norm / norm).clamp(max=1.0)) for gradient in gradients]
