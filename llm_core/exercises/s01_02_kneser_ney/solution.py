"""Reference solution of exercise 01/02: Kneser-Ney smoothing from a table of counts."""

import torch
from torch import Tensor


def continuation(counts: Tensor) -> Tensor:
    """The share of each word among all neighbours: counts (V, V), row c, column w; result (V,)."""
    neighbours = (counts > 0).sum(0)
    return neighbours / neighbours.sum()


def kneser_ney(counts: Tensor, discount: float) -> Tensor:
    """p(w | c) for every context: counts (V, V), result (V, V), each row of which sums to one."""
    totals = counts.sum(1, keepdim=True)
    types = (counts > 0).sum(1, keepdim=True)
    seen = totals.clamp(min=1)  # a context that never came leaves all to the words alone
    rest = torch.where(totals > 0, discount * types / seen, 1.0)
    return (counts - discount).clamp(min=0) / seen + rest * continuation(counts)


def discounts(counts: Tensor) -> Tensor:
    """What a count of one, of two and of three or more gives up: counts (V, V), result (3,)."""
    n = [int((counts == r).sum()) for r in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    return torch.tensor([r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3)])
