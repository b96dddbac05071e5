"""Pairs columns 2i and 2i + 1, as the paper does."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """A rotation, wrong in one place."""
    E = x.shape[-1]
    theta = base ** (-torch.arange(0, E, 2) / E)
    angles = positions[:, None] * theta
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
