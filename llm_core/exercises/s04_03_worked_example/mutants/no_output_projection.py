"""Stops at the concatenation, as the article does."""

import torch
from torch import Tensor


def two_heads(X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> Tensor:
    """Two heads, wrong in one place."""
    heads = []
    for i in range(2):
        query, key, value = X @ W_Q[i], X @ W_K[i], X @ W_V[i]
        weights = torch.softmax(query @ key.T / key.shape[-1] ** 0.5, dim=-1)
        heads.append(weights @ value)
    return torch.cat(heads, dim=-1)
