"""The first head is head 0."""

import torch
from torch import Tensor


def alibi_bias(n_heads: int, T: int, S: int) -> Tensor:
    """A bias, wrong in one place."""
    slopes = 2.0 ** (-8.0 * torch.arange(n_heads) / n_heads)
    queries = torch.arange(S - T, S)
    distances = (queries[:, None] - torch.arange(S)).clamp(min=0)
    return -slopes[:, None, None] * distances
