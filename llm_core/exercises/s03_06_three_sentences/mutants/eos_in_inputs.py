"""Cuts ids[:-1] from the padded row, which leaves <eos> in the shorter inputs."""

import torch
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    width = max(len(sentence) for sentence in sentences) + 1
    inputs, targets, mask = [], [], []
    for sentence in sentences:
        gap = width - len(sentence) - 1
        inputs.append(([bos] + sentence + [eos] + [pad] * gap)[:-1])
        targets.append(sentence + [eos] + [pad] * gap)
        mask.append([True] * (len(sentence) + 1) + [False] * gap)
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(mask)
