"""Divides zero by zero where there is nothing to clip."""

import torch
from torch import Tensor


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """The clipped gradients, wrong in one place."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient / norm * torch.clamp(norm, max=max_norm) for gradient in gradients]
