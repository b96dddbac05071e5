"""The article's own table: every entry is q_1 k_1 + q_2 k_2 + q_3 k_3."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    row = sum(q @ k for q, k in zip(Q, K, strict=True))
    scores = torch.full((len(Q), len(K)), float(row))
    weights = torch.softmax(scores / Q.shape[-1] ** 0.5, dim=-1)
    return scores, weights, weights @ V
