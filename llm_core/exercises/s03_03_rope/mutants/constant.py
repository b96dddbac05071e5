"""A placeholder."""

import torch
from torch import Tensor


def alibi_bias(n_heads: int, T: int, S: int) -> Tensor:
    """A bias, wrong in one place."""
    return torch.zeros(n_heads, T, S)
