"""Draws from the target after a refusal."""

import torch
from torch import Tensor


def judge(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Wrong in one place."""
    rows = torch.arange(len(tokens))
    keep = (p[rows, tokens] / q[rows, tokens]).clamp(max=1)
    return keep, p
