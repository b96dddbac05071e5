"""Fills in zeros."""

from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """The heads of x, wrong in one place."""
    B, T, D = x.shape
    return x.new_zeros(B, n_heads, T, D // n_heads)
