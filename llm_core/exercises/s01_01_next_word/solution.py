"""Reference solution of exercise 01/01: windows, a neural language model, and the mean of two models."""

import math

import torch
from torch import Tensor


def windows(ids: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """All contexts of n words and the word after each: ids (T,), results (T - n, n) and (T - n,)."""
    cut = ids.unfold(0, n + 1, 1)
    return cut[:, :-1], cut[:, -1]


def log_probabilities(contexts: Tensor, table: Tensor, mix: Tensor, bias: Tensor) -> Tensor:
    """ln p of every word after each context.

    contexts (N, n), table (V, D), mix (n D, D), bias (V,); result (N, V).
    """
    side_by_side = table[contexts].flatten(1)
    mixed = torch.tanh(side_by_side @ mix)
    return torch.log_softmax(mixed @ table.T + bias, dim=-1)


def mean_model(first: Tensor, second: Tensor) -> Tensor:
    """ln of the mean of two models' probabilities, from their logarithms: (T,), (T,) -> (T,)."""
    return torch.logaddexp(first, second) - math.log(2)
