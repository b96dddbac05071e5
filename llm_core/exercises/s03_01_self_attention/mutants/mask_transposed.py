"""Uses the upper triangle: tokens read what follows."""

import torch
from torch import Tensor


def self_attention(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int) -> Tensor:
    """Causal self-attention, wrong in one place."""
    B, T, D = x.shape
    E = D // n_heads
    query = (x @ w_q).reshape(B, T, n_heads, E).transpose(1, 2)
    key = (x @ w_k).reshape(B, T, n_heads, E).transpose(1, 2)
    value = (x @ w_v).reshape(B, T, n_heads, E).transpose(1, 2)
    scores = query @ key.transpose(-2, -1) / E**0.5
    mask = torch.triu(torch.ones(T, T))
    scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    heads = weights @ value
    return heads.transpose(1, 2).reshape(B, T, D) @ w_o
