"""Fills up on the left."""

import torch
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    width = max(len(sentence) for sentence in sentences) + 1
    inputs, targets, mask = [], [], []
    for sentence in sentences:
        gap = width - len(sentence) - 1
        inputs.append([pad] * gap + [bos] + sentence)
        targets.append([pad] * gap + sentence + [eos])
        mask.append([False] * gap + [True] * (len(sentence) + 1))
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(mask)
