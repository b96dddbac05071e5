"""Overwrites x with its norm before it adds."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    x = norms[0](x)
    x = x + drop(attention(x))
    x = norms[1](x)
    return x + drop(feed_forward(x))
