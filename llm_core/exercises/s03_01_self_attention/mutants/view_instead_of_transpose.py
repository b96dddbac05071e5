"""Reshapes straight to (B, H, T, E): the shape is right, the numbers are not."""

import torch
from torch import Tensor


def self_attention(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int) -> Tensor:
    """Causal self-attention, wrong in one place."""
    B, T, D = x.shape
    E = D // n_heads
    query = (x @ w_q).view(B, n_heads, T, E)
    key = (x @ w_k).view(B, n_heads, T, E)
    value = (x @ w_v).view(B, n_heads, T, E)
    scores = query @ key.transpose(-2, -1) / E**0.5
    mask = torch.tril(torch.ones(T, T))
    scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    heads = weights @ value
    return heads.transpose(1, 2).reshape(B, T, D) @ w_o
