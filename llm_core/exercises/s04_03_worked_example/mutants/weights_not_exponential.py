"""Divides the scores by their sum."""

from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = Q @ K.T
    weights = scores / scores.sum(dim=-1, keepdim=True)
    return scores, weights, weights @ V
