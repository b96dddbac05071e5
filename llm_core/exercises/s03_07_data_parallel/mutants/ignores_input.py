"""Ones in the place of the counts, and a weight for each row that depends on its place."""

import torch
from torch import Tensor


def all_reduce_mean(gradients: Tensor, counts: Tensor) -> Tensor:
    """The exchange, wrong in one place."""
    share = torch.arange(1.0, len(gradients) + 1).view(-1, *[1] * (gradients.ndim - 1))
    return ((share * gradients).sum(0) / share.sum()).expand_as(gradients).clone()
