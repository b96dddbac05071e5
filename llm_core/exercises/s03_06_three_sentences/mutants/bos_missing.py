"""Starts with the first word, so that nothing predicts it."""

import torch
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    width = max(len(sentence) for sentence in sentences)
    inputs, targets, mask = [], [], []
    for sentence in sentences:
        gap = width - len(sentence)
        inputs.append(sentence + [pad] * gap)
        targets.append(sentence[1:] + [eos] + [pad] * gap)
        mask.append([True] * len(sentence) + [False] * gap)
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(mask)
