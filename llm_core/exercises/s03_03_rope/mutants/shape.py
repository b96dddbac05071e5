"""Turns the first half and leaves the second one out."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """A rotation, wrong in one place."""
    E = x.shape[-1]
    theta = base ** (-torch.arange(0, E, 2) / E)
    angles = positions[:, None] * theta
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return first * cos - second * sin
