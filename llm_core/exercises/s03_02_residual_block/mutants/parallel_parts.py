"""Lets both parts read the input."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    return x + drop(attention(norms[0](x))) + drop(feed_forward(norms[1](x)))
