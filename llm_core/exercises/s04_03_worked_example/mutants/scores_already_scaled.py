"""Divides by the root when the scores are made."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = Q @ K.T / Q.shape[-1] ** 0.5
    weights = torch.softmax(scores, dim=-1)
    return scores, weights, weights @ V
