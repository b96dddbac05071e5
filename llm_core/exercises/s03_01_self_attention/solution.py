"""Reference solution of exercise 03/01: causal self-attention with several heads."""

import torch
from torch import Tensor


def self_attention(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int) -> Tensor:
    """Each token's mixture of itself and the tokens before it, in n_heads heads; (B, T, D) in and out."""
    B, T, D = x.shape
    E = D // n_heads
    query, key, value = (
        (x @ w).reshape(B, T, n_heads, E).transpose(1, 2)  # (B, H, T, E)
        for w in (w_q, w_k, w_v)
    )
    scores = query @ key.transpose(-2, -1) / E**0.5  # (B, H, T, T)
    may_read = torch.ones(T, T, dtype=torch.bool).tril()
    weights = scores.masked_fill(~may_read, float("-inf")).softmax(dim=-1)
    heads = (weights @ value).transpose(1, 2)  # (B, T, H, E)
    return heads.reshape(B, T, D) @ w_o
