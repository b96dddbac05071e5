"""Has no return."""

from torch import Tensor


def join_heads(heads: Tensor) -> Tensor:  # type: ignore[return]
    """The heads side by side, wrong in one place."""
    heads.transpose(1, 2).flatten(2)
