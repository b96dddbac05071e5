"""Returns a placeholder of the right shape."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm, wrong in one place."""
    return torch.zeros_like(x)
