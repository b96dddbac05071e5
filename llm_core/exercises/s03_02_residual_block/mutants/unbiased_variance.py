"""Divides by D - 1, as torch.var does unless told otherwise."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm, wrong in one place."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / torch.tensor(x.shape[-1] - 1)
    return centred / (variance + eps).sqrt() * gain + bias
