"""Starts its second line from the input."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    h = x + drop(attention(norms[0](x)))
    return x + drop(feed_forward(norms[1](h)))
