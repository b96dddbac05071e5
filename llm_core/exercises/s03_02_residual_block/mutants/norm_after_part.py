"""Norms what the parts give."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The block, wrong in one place."""
    x = x + drop(norms[0](attention(x)))
    return x + drop(norms[1](feed_forward(x)))
