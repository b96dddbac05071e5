"""Returns a uniform distribution."""

import torch
from torch import Tensor


def next_token_probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Wrong in one place."""
    return torch.full_like(logits, 1 / logits.shape[-1])
