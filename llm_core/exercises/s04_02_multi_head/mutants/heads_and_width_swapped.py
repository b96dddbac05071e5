"""Takes the number of heads for their width."""

from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """The heads of x, wrong in one place."""
    B, T, D = x.shape
    return x.reshape(B, T, D // n_heads, n_heads).transpose(1, 2)
