"""Norms each number over the positions, as batch norm would."""

from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm, wrong in one place."""
    axis = -2 if x.ndim > 1 else -1
    centred = x - x.mean(dim=axis, keepdim=True)
    return centred / (centred.square().mean(dim=axis, keepdim=True) + eps).sqrt() * gain + bias
