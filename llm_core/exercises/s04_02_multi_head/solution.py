"""Reference solution of exercise 04/02: splitting and joining heads, and what each of them adds to the output."""

from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Cut the columns of x (B, T, D) into n_heads heads (B, H, T, E)."""
    B, T, D = x.shape
    return x.reshape(B, T, n_heads, D // n_heads).transpose(1, 2)


def join_heads(heads: Tensor) -> Tensor:
    """Put the heads (B, H, T, E) side by side: (B, T, H E)."""
    B, H, T, E = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * E)


def head_contributions(heads: Tensor, w_o: Tensor) -> Tensor:
    """Each head's term: heads (B, H, T, E) and w_o (H E, D) give (B, H, T, D)."""
    _, H, _, E = heads.shape
    blocks = w_o.reshape(H, E, -1)  # the E rows of each head: (H, E, D)
    return heads @ blocks
