"""Reference solution of exercise 03/02: layer norm, dropout and the pre-norm block."""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 for each vector of x (..., D), then times gain plus bias."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * gain + bias


def dropout(x: Tensor, keep: Tensor, p: float, training: bool) -> Tensor:
    """x with zeros where `keep` is False, the rest divided by 1 - p; x itself unless training."""
    return torch.where(keep, x / (1 - p), 0.0) if training else x


def pre_norm_block(
    x: Tensor, attention: Function, feed_forward: Function, norms: tuple[Function, Function], drop: Function
) -> Tensor:
    """The stream x (B, T, D) after attention and the feed-forward layer have added to it."""
    x = x + drop(attention(norms[0](x)))
    return x + drop(feed_forward(norms[1](x)))
