"""Reference solution of exercise 04/03: the worked example with one head and with two."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores S = Q K^T, weights softmax(S / sqrt(d_k)) row by row, output weights V."""
    scores = Q @ K.T
    weights = torch.softmax(scores / Q.shape[-1] ** 0.5, dim=-1)
    return scores, weights, weights @ V


def two_heads(X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> Tensor:
    """Concat(head_1, head_2) W_O, where head i attends with X W_Q[i], X W_K[i], X W_V[i]."""
    heads = [one_head(X @ W_Q[i], X @ W_K[i], X @ W_V[i])[2] for i in range(2)]
    return torch.cat(heads, dim=-1) @ W_O
