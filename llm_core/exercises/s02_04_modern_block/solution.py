"""Reference solution of exercise 02/04: RMSNorm, SwiGLU, and the half of a modern block that they make."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each vector of x (..., D) divided by its root mean square, then times weight (D,)."""
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / (mean_square + eps).sqrt() * weight


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x (..., D) through gate and up (F, D), which meet in F numbers, and back through down (D, F)."""
    opened = x @ gate.T
    opened = opened * torch.sigmoid(opened)
    return (opened * (x @ up.T)) @ down.T


def half_block(x: Tensor, weight: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The stream x (..., D) after the feed-forward half of a pre-norm block has added to it."""
    return x + swiglu(rms_norm(x, weight, eps), gate, up, down)
