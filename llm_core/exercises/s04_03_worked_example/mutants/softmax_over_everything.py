"""Normalises the whole table at once."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = Q @ K.T
    raised = torch.exp(scores / Q.shape[-1] ** 0.5)
    weights = raised / raised.sum()
    return scores, weights, weights @ V
