"""Scales the values' gradient too."""

from torch import Tensor


def attention_backward(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, d_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's way back, wrong in one place."""
    d_weights = d_output @ value.mT
    mean = (weights * d_weights).sum(dim=-1, keepdim=True)
    d_scores = weights * (d_weights - mean) / query.shape[-1] ** 0.5
    return d_scores @ key, d_scores.mT @ query, weights.mT @ d_output / query.shape[-1] ** 0.5
