"""Forgets the root."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = Q @ K.T
    weights = torch.softmax(scores / Q.shape[-1], dim=-1)
    return scores, weights, weights @ V
