"""Exchanges halves, and lays the angles out for neighbours."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """A rotation, wrong in one place."""
    E = x.shape[-1]
    theta = base ** (-torch.arange(0, E, 2) / E)
    angles = positions[:, None] * theta
    cos, sin = angles.cos().repeat_interleave(2, -1), angles.sin().repeat_interleave(2, -1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
