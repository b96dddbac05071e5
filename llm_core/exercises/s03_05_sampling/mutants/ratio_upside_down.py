"""Divides the draft's probability by the target's."""

import torch
from torch import Tensor


def judge(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong in one place."""
    rows = torch.arange(len(tokens))
    keep = (q[rows, tokens] / p[rows, tokens]).clamp(max=1)
    missing = (p - q).clamp(min=0)
    total = missing.sum(dim=-1, keepdim=True)
    return keep, torch.where(total > 0, missing / total, p)
