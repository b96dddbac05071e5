"""Returns the output."""

from torch import Tensor


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term, wrong in one place."""
    return heads.transpose(1, 2).flatten(2) @ w_o
