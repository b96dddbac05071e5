"""Reference solution of exercise 03/06: a batch of sentences and its loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def make_batch(sentences: list[list[int]], bos: int, eos: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs <bos> w1 ... wn, targets w1 ... wn <eos>, and a mask, True at the n + 1 real targets."""
    width = max(len(sentence) for sentence in sentences) + 1
    inputs = torch.full((len(sentences), width), pad)
    targets = torch.full((len(sentences), width), pad)
    mask = torch.zeros(len(sentences), width, dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        n = len(sentence) + 1
        inputs[row, :n] = torch.tensor([bos, *sentence])
        targets[row, :n] = torch.tensor([*sentence, eos])
        mask[row, :n] = True
    return inputs, targets, mask


def mean_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The mean cross-entropy over the real tokens of the whole batch."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses[mask.flatten()].mean()
