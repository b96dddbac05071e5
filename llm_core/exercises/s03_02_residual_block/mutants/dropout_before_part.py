"""Drops what the parts read."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    x = x + attention(drop(norms[0](x)))
    return x + feed_forward(drop(norms[1](x)))
