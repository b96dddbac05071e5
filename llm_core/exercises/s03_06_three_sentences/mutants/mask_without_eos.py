"""Counts n targets where there are n + 1."""

import torch
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    width = max(len(sentence) for sentence in sentences) + 1
    inputs, targets, mask = [], [], []
    for sentence in sentences:
        gap = width - len(sentence) - 1
        inputs.append([bos] + sentence + [pad] * gap)
        targets.append(sentence + [eos] + [pad] * gap)
        mask.append([True] * len(sentence) + [False] * (gap + 1))
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(mask)
