"""Stacks the terms without saying where."""

import torch
from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H, E = heads.shape[1], heads.shape[3]
    terms = [heads[:, h] @ w_o[h * E : (h + 1) * E] for h in range(H)]
    return torch.stack(terms)
