"""Writes the terms into a tensor that holds no numbers, and leaves out the last token."""

from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    H, E = heads.shape[1], heads.shape[3]
    terms = heads @ w_o.reshape(H, E, -1)
    terms[:, :, -1] = float("nan")
    return terms
