"""Norms: bring each position's vector back to a common size, so that depth stays trainable.

    layer_norm   subtract the mean, divide by the standard deviation, scale and shift (Ba et al. 2016)
    rms_norm     divide by the root mean square, scale (Zhang and Sennrich 2019)

`RMSNormPlusOne` is `rms_norm` too, but what it learns is how far the scale is from one.

The functions are the definitions; the modules hold the weights and call torch's fused kernels, which give the same
numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def layer_norm(
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, " D"] | None = None,
    bias: Float[Tensor, " D"] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch D"]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension; the variance divides by D."""
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias


def rms_norm(
    x: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"] | None = None, *, eps: float = 1e-5
) -> Float[Tensor, "*batch D"]:
    """x / sqrt(mean of x squared + eps) * weight, over the last dimension."""
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


class LayerNorm(nn.Module):
    """`layer_norm` with a learned weight and, unless `bias=False`, a learned bias."""

    def __init__(self, d_model: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """x, normed along its last dimension."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight."""

    def __init__(self, d_model: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """x, normed along its last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RMSNormPlusOne(RMSNorm):
    """`rms_norm` by one plus a learned weight, which begins at zero: weight decay pulls it to a plain norm.

    Computed in 32 bits at least, since in 16 one plus a small weight would be one. Source: Gemma Team 2024 (its code).
    """

    def __init__(self, d_model: int, *, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps=eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """x, normed along its last dimension."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), self.weight.shape, 1 + self.weight.to(dtype), self.eps).to(x.dtype)
