"""Reference solution of exercise 01/05: two metrics of the same predictions, and the bits that were learned."""

import math

import torch
from torch import Tensor


def token_share(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The share of right tokens, where the mask is True: logits (B, T, V), targets and mask (B, T), a scalar."""
    right = logits.argmax(dim=-1) == targets
    return right[mask].float().mean()


def whole_share(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The share of answers all of whose tokens are right; rows without a token are no answers."""
    right = logits.argmax(dim=-1) == targets
    whole = (right | ~mask).all(dim=1)
    return whole[mask.any(dim=1)].float().mean()


def bits_learned(logits: Tensor, targets: Tensor, mask: Tensor, choices: int) -> Tensor:
    """How many bits less the tokens of the mask cost than by guessing blindly among so many choices, a scalar."""
    logs = torch.log_softmax(logits, dim=-1)
    losses = -logs.gather(-1, targets[..., None])[..., 0] / math.log(2)
    return (math.log2(choices) - losses)[mask].sum()
