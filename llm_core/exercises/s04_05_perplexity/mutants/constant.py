"""Returns a placeholder: the loss of a model that knows nothing."""

import math

import torch
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each token's loss, wrong in one place."""
    return torch.full(targets.shape, math.log(logits.shape[-1]))
