"""Returns memory that nobody wrote: NaN here, anything elsewhere."""

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention, wrong in one place."""
    return torch.full((*query.shape[:-1], value.shape[-1]), float("nan"))
