"""Sets the other heads to zero in the tensor that it was given."""

import torch
from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H = heads.shape[1]
    terms = []
    for h in range(H):
        alone = heads
        alone[:, :h] = 0
        alone[:, h + 1 :] = 0
        terms.append(alone.transpose(1, 2).flatten(2) @ w_o)
    return torch.stack(terms, dim=1)
