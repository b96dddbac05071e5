"""Pairs keys with queries."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = K @ Q.T
    weights = torch.softmax(scores / Q.shape[-1] ** 0.5, dim=-1)
    return scores, weights, weights @ V
