"""Counts the heads from 1."""

import torch
from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H, E = heads.shape[1], heads.shape[3]
    blocks = w_o.reshape(H, E, -1)
    terms = [heads[:, h] @ blocks[(h + 1) % H] for h in range(H)]
    return torch.stack(terms, dim=1)
