"""Forgets to return."""

from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:  # type: ignore[return]
    """Layer norm, wrong in one place."""
    centred = x - x.mean(dim=-1, keepdim=True)
    _ = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain + bias
