"""Takes every H-th row."""

import torch
from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H = heads.shape[1]
    terms = [heads[:, h] @ w_o[h::H] for h in range(H)]
    return torch.stack(terms, dim=1)
