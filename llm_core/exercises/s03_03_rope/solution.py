"""Reference solution of exercise 03/03: RoPE with pairs of halves, and ALiBi's bias."""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """x (B, H, T, E) with columns i and i + E/2 turned by positions * base^(-2i / E)."""
    E = x.shape[-1]
    theta = base ** (-torch.arange(0, E, 2) / E)  # (E/2,)
    angles = positions[:, None] * theta  # (T, E/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def alibi_bias(n_heads: int, T: int, S: int) -> Tensor:
    """(H, T, S): -slope * (i - j) for the last T of S positions, 0 for keys after the query."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
    queries = torch.arange(S - T, S)
    distances = (queries[:, None] - torch.arange(S)).clamp(min=0)
    return -slopes[:, None, None] * distances
