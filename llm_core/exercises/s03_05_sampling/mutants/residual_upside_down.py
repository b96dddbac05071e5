"""What the draft has more of, where what it has less of was asked for."""

import torch
from torch import Tensor


def judge(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong in one place."""
    rows = torch.arange(len(tokens))
    keep = (p[rows, tokens] / q[rows, tokens]).clamp(max=1)
    missing = (q - p).clamp(min=0)
    total = missing.sum(dim=-1, keepdim=True)
    return keep, torch.where(total > 0, missing / total, p)
