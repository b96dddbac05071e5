"""Norms the sums: the block of 2017."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    x = norms[0](x + drop(attention(x)))
    return norms[1](x + drop(feed_forward(x)))
