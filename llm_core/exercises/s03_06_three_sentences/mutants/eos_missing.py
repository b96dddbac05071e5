"""Cuts ids[:-1] and ids[1:] from <bos> and the sentence, and never adds <eos>."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, wrong in one place."""
    ids = pad_sequence([torch.tensor([bos, *s]) for s in sentences], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(s) for s in sentences])
    mask = torch.arange(ids.shape[1] - 1) < lengths[:, None]
    return ids[:, :-1], ids[:, 1:], mask
