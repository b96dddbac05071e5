"""Forgets the index: both heads use the first head's matrices."""

import torch
from torch import Tensor


def two_heads(X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> Tensor:
    """Two heads, wrong in one place."""
    heads = []
    for _ in range(2):
        query, key, value = X @ W_Q[0], X @ W_K[0], X @ W_V[0]
        weights = torch.softmax(query @ key.T / key.shape[-1] ** 0.5, dim=-1)
        heads.append(weights @ value)
    return torch.cat(heads, dim=-1) @ W_O
