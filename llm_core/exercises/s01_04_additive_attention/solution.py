"""Reference solution of exercise 01/04: additive attention over padded sources."""

import torch
from torch import Tensor


def scores(query: Tensor, states: Tensor, w_query: Tensor, w_state: Tensor, bias: Tensor, vector: Tensor) -> Tensor:
    """How well each state fits each query: query (B, T, Q), states (B, S, N), result (B, T, S)."""
    asked = query @ w_query.T + bias
    offered = states @ w_state.T
    return (asked[:, :, None] + offered[:, None]).tanh() @ vector


def weights(scores: Tensor, lengths: Tensor) -> Tensor:
    """The softmax over the real states of each source: scores (B, T, S), lengths (B,), result (B, T, S)."""
    real = torch.arange(scores.shape[-1]) < lengths[:, None]
    masked = scores.masked_fill(~real[:, None], float("-inf"))
    return masked.softmax(dim=-1)


def read(weights: Tensor, states: Tensor) -> Tensor:
    """The weighted mean of the states: weights (B, T, S), states (B, S, N), result (B, T, N)."""
    return weights @ states
