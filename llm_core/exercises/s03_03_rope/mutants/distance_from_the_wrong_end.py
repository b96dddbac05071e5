"""Takes the queries for the first T positions."""

import torch
from torch import Tensor


def alibi_bias(n_heads: int, T: int, S: int) -> Tensor:
    """A bias, wrong in one place."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
    queries = torch.arange(T)
    distances = (queries[:, None] - torch.arange(S)).clamp(min=0)
    return -slopes[:, None, None] * distances
