"""Reference solution of exercise 04/04: the backward passes of softmax, cross-entropy and attention."""

import torch
from torch import Tensor


def softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    """d_scores from the weights (..., S) that a softmax over the last dimension gave, and their derivative."""
    mean = (weights * d_weights).sum(dim=-1, keepdim=True)
    return weights * (d_weights - mean)


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """d_logits of the mean loss: logits (N, V), targets (N,), result (N, V)."""
    N = len(targets)
    off = logits.softmax(dim=-1)
    off[torch.arange(N), targets] -= 1
    return off / N


def attention_backward(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, d_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_query, d_key, d_value) of scaled dot-product attention with these weights (..., T, S)."""
    d_value = weights.mT @ d_output
    d_weights = d_output @ value.mT
    d_scores = softmax_backward(weights, d_weights) / query.shape[-1] ** 0.5
    return d_scores @ key, d_scores.mT @ query, d_value
