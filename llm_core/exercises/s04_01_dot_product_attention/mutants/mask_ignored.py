"""Takes a mask and does not use it. (Adding -1e-9 where -1e9 was meant comes to the same.)"""

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention, wrong in one place."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (~mask) * -1e-9
    weights = torch.softmax(scores, dim=-1)
    return weights @ value
