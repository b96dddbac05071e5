"""Leaves the tokens where they are in the joined heads."""

from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H, E = heads.shape[1], heads.shape[3]
    return (heads @ w_o.reshape(H, E, -1)).transpose(1, 2)
