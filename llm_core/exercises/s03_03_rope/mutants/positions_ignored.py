"""Counts from 0 whatever the positions are: the bug that a cache brings out."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """A rotation, wrong in one place."""
    E = x.shape[-1]
    theta = base ** (-torch.arange(0, E, 2) / E)
    angles = torch.arange(x.shape[-2])[:, None] * theta
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
