"""Returns a placeholder of the right shape."""

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention, wrong in one place."""
    return torch.zeros(*query.shape[:-1], value.shape[-1])
