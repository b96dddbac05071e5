"""Returns the output alone where scores and weights were asked for, too."""

import torch
from torch import Tensor


def one_head(Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One head, wrong in one place."""
    scores = Q @ K.T
    weights = torch.softmax(scores / Q.shape[-1] ** 0.5, dim=-1)
    return weights @ V  # type: ignore[return-value]
