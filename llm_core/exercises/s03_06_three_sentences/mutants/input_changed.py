"""Appends <eos> to the caller's own lists."""

import torch
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    width = max(len(sentence) for sentence in sentences) + 1
    inputs, targets, mask = [], [], []
    for sentence in sentences:
        sentence.append(eos)
        gap = width - len(sentence)
        inputs.append([bos] + sentence[:-1] + [pad] * gap)
        targets.append(sentence + [pad] * gap)
        mask.append([True] * len(sentence) + [False] * gap)
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(mask)
